// time and memory of each module, forward and backward, and advice

const PROFILE_TIMES = [
  ["Forward", "forward_ms", "with the modules inside"],
  ["Forward, own", "forward_self_ms", "without the modules inside"],
  ["Backward", "backward_ms", "with the modules inside"],
  ["Backward, own", "backward_self_ms", "without the modules inside"],
];
const PROFILE_DEVICE = [
  ["Forward on device", "device_forward_ms", "of kernels"],
  ["Backward on device", "device_backward_ms", "of kernels"],
];

function fillProfile(passes) {
  if (passes.every((pass) => pass.profile === null)) {
    leaveOut("profile");
    return;
  }
  passes.forEach((pass, index) => {
    const heading = passHeading(passes, index);
    if (heading) section("profile").append(heading);
    if (pass.profile === null) section("profile").append(make("p", {}, "No profile was taken of this pass."));
    else section("profile").append(profileTable(pass.profile.modules, of(passes, index)), advice(pass.profile.advice));
  });
}

function profileTable(rows, of) {
  const device = rows.some((row) => row.device_forward_ms > 0 || row.device_backward_ms > 0);
  const times = device ? [...PROFILE_TIMES, ...PROFILE_DEVICE] : PROFILE_TIMES;
  const note = "allocated, less what was freed";
  const columns = [
    { label: "Module", value: (row) => moduleName(row.module), code: true },
    { label: "Class", value: (row) => row.class, code: true },
    { label: "Calls", value: (row) => row.calls, text: number, numeric: true },
    ...times.map(([label, key, note]) => ({
      label,
      value: (row) => row[key],
      text: milliseconds,
      numeric: true,
      note,
    })),
    { label: "Forward bytes", value: (row) => row.forward_bytes, text: bytes, numeric: true, note },
    { label: "Backward bytes", value: (row) => row.backward_bytes, text: bytes, numeric: true, note },
  ];
  const search = (row) => [moduleName(row.module), row.class ?? ""];
  return makeTable({ caption: `Modules${of}`, columns, rows, search, hint: "module or class", page: 100 });
}

function advice(items) {
  if (items.length === 0) return make("p", { class: "quiet" }, "No advice: nothing stood out.");
  const lines = items.map((item) => {
    const parts = [make("strong", {}, item.what), make("p", {}, item.why), make("p", {}, item.remedy)];
    return make("li", {}, ...parts);
  });
  return make("div", { class: "advice" }, make("p", { class: "label" }, "Advice"), make("ol", {}, ...lines));
}

// colours come from the style sheet, so that charts follow the colour scheme as everything else does

const redraws = [];

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

// plotly reads a few tags and entities in every text
function plain(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

// drawn when all has loaded, plotly too; figure() gives { data, layout } in the colours of now
function chart(holder, figure) {
  const redraw = () => {
    const { data, layout } = figure();
    const hover = { bgcolor: color("surface"), bordercolor: color("line"), font: { color: color("text") } };
    const base = {
      paper_bgcolor: color("surface"),
      plot_bgcolor: color("surface"),
      font: { family: color("sans"), size: 12, color: color("text") },
      hoverlabel: { ...hover, align: "left" },
      uirevision: "kept",
    };
    Plotly.react(holder, data, { ...base, ...layout }, { responsive: true, displayModeBar: false });
  };
  redraws.push(redraw);
}

function redrawAll() {
  for (const redraw of redraws) redraw();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);

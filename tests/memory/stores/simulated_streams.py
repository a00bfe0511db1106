"""An accelerator made of CPU tensors, whose streams run whenever the worst of them likes.

What a stream is given runs in order, but how far each stream has got is drawn anew whenever an event is asked. Memory
is not protected by anything: whoever frees or overwrites what a stream still has to read is found out.
"""

import collections
import random
import weakref

import torch


class Event:
    def __init__(self, device):
        self.device = device
        self.done = False

    def query(self):
        self.device.run_a_little()
        return self.done

    def synchronize(self):
        self.device.run_until(lambda: self.done)


class Device:
    """Streams by name: queues of steps, each of which tells whether it could run."""

    def __init__(self, seed=0, eager=False):
        self.rng = random.Random(seed)
        self.eager = eager
        self.queues = collections.defaultdict(collections.deque)
        self.current = "main"
        self.copied_back = 0

    def give(self, stream, step):
        self.queues[stream].append(step)
        if self.eager:
            self.finish()

    def launch(self, kernel):
        """Run something on the current stream, some time."""
        self.give(self.current, lambda: (kernel(), True)[1])

    def record(self, stream):
        event = Event(self)

        def step():
            event.done = True
            return True

        self.give(stream, step)
        return event

    def wait(self, stream, event):
        self.give(stream, lambda: event.done)

    def switch(self, stream):
        """Go on with another stream, which waits for the one before, as a careful user would have it."""
        event = self.record(self.current)
        self.current = stream
        self.wait(stream, event)

    def run_one(self):
        ready = [queue for queue in self.queues.values() if queue]
        self.rng.shuffle(ready)
        for queue in ready:
            if queue[0]():
                queue.popleft()
                return True
        assert not ready, "all streams wait for one another"
        return False

    def run_a_little(self):
        for _ in range(self.rng.choice((0, 0, 0, 1, 1, 2, 5, 20))):
            self.run_one()

    def run_until(self, condition):
        while not condition():
            assert self.run_one()

    def finish(self):
        while self.run_one():
            pass


class SimulatedStreams:
    """Stands in for :class:`torchadx.memory.stores._streams.Streams`."""

    device = None

    def __init__(self, device):
        self.sim = SimulatedStreams.device

    def mark(self):
        return self.sim.record(self.sim.current)

    def copy_out(self, targets, sources, after):
        self.sim.wait("out", after)
        for target, source in zip(targets, sources, strict=True):
            self._copy("out", target, weakref.ref(source))
        return self.sim.record("out")

    def copy_back(self, sources, after):
        self.sim.copied_back += 1
        self.sim.wait("back", after)
        parts = tuple(torch.empty_like(source) for source in sources)
        for part, source in zip(parts, sources, strict=True):
            self._copy("back", part, lambda source=source: source)
        return parts, self.sim.record("back")

    def clone(self, parts, ready):
        self.hand_over(parts, ready)
        copies = tuple(torch.empty_like(part) for part in parts)
        for copy, part in zip(copies, parts, strict=True):
            self._copy(self.sim.current, copy, lambda part=part: part)
        return copies

    def hand_over(self, parts, ready):
        self.sim.wait(self.sim.current, ready)

    def _copy(self, stream, target, source):
        def step():
            tensor = source()
            assert tensor is not None, "freed before it was copied"
            # neither through the version counter, which the device knows nothing of
            target.data.copy_(tensor.data)
            return True

        self.sim.give(stream, step)

"""A small desktop window around the runtime: prompt, progress, previews, cancel.

    python examples/desktop.py BUNDLE

Needs Tk (part of most Python installations). Drawing happens in a thread; closing the stream cancels it.
"""

from __future__ import annotations

import queue
import sys
import threading
import tkinter
from tkinter import ttk

from PIL import Image, ImageTk

from hart_edge.runtime import HartError, Pipeline


class Window:
    """Args: a loaded pipeline; the Tk root to build in."""

    def __init__(self, pipe: Pipeline, root: tkinter.Tk) -> None:
        self.pipe, self.root = pipe, root
        self.events: queue.Queue[tuple[str, object]] = queue.Queue()
        self.cancelled = threading.Event()
        self.prompt = ttk.Entry(root, width=60)
        self.prompt.insert(0, "a lighthouse at dusk")
        self.draw = ttk.Button(root, text="Draw", command=self.start)
        self.cancel = ttk.Button(root, text="Cancel", command=self.cancelled.set, state="disabled")
        self.bar = ttk.Progressbar(root, maximum=pipe.spec.scales)
        self.picture, self.status = ttk.Label(root), ttk.Label(root, text="ready")
        for row, widget in enumerate((self.prompt, self.draw, self.cancel, self.bar, self.picture, self.status)):
            widget.grid(row=row, sticky="ew", padx=8, pady=4)
        root.after(50, self.poll)

    def start(self) -> None:
        self.cancelled.clear()
        self.draw.config(state="disabled")
        self.cancel.config(state="normal")
        threading.Thread(target=self.work, args=(self.prompt.get(),), daemon=True).start()

    def work(self, prompt: str) -> None:
        """In the thread: one event per scale; leaving the loop closes the stream and frees its cache."""
        try:
            for step in self.pipe.stream(prompt):
                self.events.put(("step", (step.scale + 1, step.preview())))
                if self.cancelled.is_set():
                    self.events.put(("done", "cancelled"))
                    return
            self.events.put(("done", "done"))
        except HartError as error:
            self.events.put(("done", str(error)))

    def poll(self) -> None:
        """In the window's thread: show what has come."""
        while not self.events.empty():
            kind, value = self.events.get()
            self.show_step(*value) if kind == "step" else self.finish(str(value))
        self.root.after(50, self.poll)

    def show_step(self, done: int, image: Image.Image) -> None:
        self.bar.config(value=done)
        self.shown = ImageTk.PhotoImage(image.resize((512, 512)))  # Tk keeps no reference of its own
        self.picture.config(image=self.shown)
        self.status.config(text=f"scale {done} of {self.pipe.spec.scales}")

    def finish(self, message: str) -> None:
        self.draw.config(state="normal")
        self.cancel.config(state="disabled")
        self.status.config(text=message)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/desktop.py BUNDLE")
    with Pipeline.load(sys.argv[1]) as pipe:
        root = tkinter.Tk()
        root.title("hart-edge")
        Window(pipe, root)
        root.mainloop()


if __name__ == "__main__":
    main()

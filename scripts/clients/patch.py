"""Changes the source of an engine that a registry ships, line by line; each place must be there once."""


class Source:
    """The text of a file. A place is a part of one of its lines; `nth` chooses one of several. `changed` counts the
    lines that were added or changed."""

    def __init__(self, path):
        self.path, self.lines, self.changed = path, path.read_text().splitlines(), 0

    def after(self, place, *lines, nth=None):
        """Adds lines after the one that has `place`."""
        self._add(self._find(place, nth) + 1, lines)

    def before(self, place, *lines, nth=None):
        """Adds lines before the one that has `place`."""
        self._add(self._find(place, nth), lines)

    def replace(self, old, new, nth=None):
        """Changes a part of a line."""
        line = self._find(old, nth)
        self.lines[line] = self.lines[line].replace(old, new, 1)
        self.changed += 1

    def write(self, path):
        path.write_text("\n".join(self.lines) + "\n")

    def _add(self, line, lines):
        self.lines[line:line] = lines
        self.changed += len(lines)

    def _find(self, place, nth):
        found = [line for line, text in enumerate(self.lines) if place in text]
        if len(found) != 1 and (nth is None or nth >= len(found)):
            raise SystemExit(f"{self.path} has {len(found)} lines with {place!r}: it is another version than the one "
                             f"that was tried; adapt the client's lines to it")
        return found[nth or 0]

// The graph around a result: what it is computed from, and what is computed from it, two steps either way.
const MOST_NODES = 6;
const nodeOf = new Map();
const readers = new Map();
if (isRun) {
  for (const node of data.graph) nodeOf.set(node.cell, node);
  for (const node of data.graph) {
    for (const input of node.inputs) {
      if (typeof input !== 'number') continue;
      if (!readers.has(input)) readers.set(input, []);
      readers.get(input).push(node.cell);
    }
  }
}

function buildGraph(cell, step) {
  if (!nodeOf.has(cell)) return [];
  const inputs = (at) => (nodeOf.get(at) ? nodeOf.get(at).inputs.filter((input) => typeof input === 'number') : []);
  const names = nodeOf.get(cell).inputs.filter((input) => typeof input === 'string');
  const unique = (list) => [...new Set(list)];
  const seen = new Set([cell]);
  const next = (from, of) => {
    const all = unique(from.flatMap(of)).filter((at) => !seen.has(at));
    const shown = all.slice(0, MOST_NODES);
    shown.forEach((at) => seen.add(at));
    return { shown, more: all.length - shown.length };
  };
  const before = next([cell], inputs), earlier = next(before.shown, inputs);
  const after = next([cell], (at) => readers.get(at) || []), later = next(after.shown, (at) => readers.get(at) || []);
  const limit = data[view.kind] ? data[view.kind].limit : 1;
  const boxes = new Map();
  const box = (at) => {
    const value = valueOf(view.kind, step, at);
    const shade = isNumber(value) ? level(value / limit) : 'hatched';
    const own = at === cell;
    const made = el(own ? 'span' : 'button', {
      class: `node${own ? ' self' : ''}`, type: own ? null : 'button',
      title: `${cellName(at)}: ${errorWords(view.kind, value)}`,
      'aria-label': own ? null : `Go to ${cellName(at)}, ${errorWords(view.kind, value)}`,
      onclick: own ? null : () => choose(at, true),
    }, el('span', { class: `sw ${shade}` }), el('span', {}, sameLayer(at, cell) ? data.layout.sites[rowOf(at)].name : cellName(at)));
    boxes.set(at, made);
    return made;
  };
  const column = ({ shown, more }, extra) => el('div', { class: 'column' }, shown.map(box), extra || [],
    more > 0 && el('span', { class: 'muted mono' }, `${more} more`));
  const weight = nodeOf.get(cell).weight;
  const leaves = [weight, ...names].filter(Boolean).map((name) => el('span', { class: 'node weight', title: name }, el('span', {}, name)));
  const columns = [];
  if (earlier.shown.length) columns.push(column(earlier));
  if (before.shown.length || leaves.length) columns.push(column(before, leaves));
  columns.push(el('div', { class: 'column' }, box(cell)));
  if (after.shown.length) columns.push(column(after));
  if (later.shown.length) columns.push(column(later));
  const lines = svg('svg', { 'aria-hidden': 'true' });
  const host = el('div', { class: 'columns' }, lines, columns);
  const edges = [];
  for (const to of boxes.keys()) for (const from of inputs(to)) if (boxes.has(from)) edges.push([boxes.get(from), boxes.get(to), to === cell || from === cell]);
  for (const leaf of leaves) edges.push([leaf, boxes.get(cell), true]);
  // Drawn when the boxes have their places.
  const draw = () => {
    const base = host.getBoundingClientRect();
    lines.setAttribute('width', base.width);
    lines.setAttribute('height', base.height);
    lines.replaceChildren(...edges.map(([from, to, main]) => {
      const [a, b] = [from.getBoundingClientRect(), to.getBoundingClientRect()];
      const [x, y, u, v] = [a.right - base.left, a.top + a.height / 2 - base.top, b.left - base.left, b.top + b.height / 2 - base.top];
      const middle = (x + u) / 2;
      return svg('path', { class: main ? 'main' : '', d: `M${x},${y}C${middle},${y} ${middle},${v} ${u},${v}` });
    }));
  };
  return [
    el('h4', {}, 'Around it in the graph ', el('span', { class: 'muted' }, `${nodeOf.get(cell).op}; coloured as the map`)),
    el('div', { class: 'graph', role: 'group', 'aria-label': 'Graph around the result', tabindex: 0 }, host),
    draw,
  ];
}

const sameLayer = (a, b) => inLayer(a) && inLayer(b) && layerOf(a) === layerOf(b);

// What was read off a wrong result: positions, angles, keys, slots.
const KIND_COLOURS = ['#0072b2', '#e69f00', '#cc79a7', '#009e73', '#d55e00', '#56b4e9', '#a6761d', '#7570b3'];
const ANGLE_SHADES = ['w1', 'b1', 'b3', 'b4', 'b6'];

function buildReadings(cell, step) {
  const own = data.readings.filter((one) => one.cell === cell);
  const draws = [];
  const nodes = own.flatMap((one) => {
    const shown = one.positions ? { node: positionChart(one.positions) } : kindsPicture(one.cells, one.title);
    if (shown.draw) draws.push(shown.draw);
    return [el('h4', {}, one.title, el('span', { class: 'muted' }, ` read off its inputs and its result${one.step === step ? '' : `, of step ${one.step}`}`)), shown.node];
  });
  return { nodes, draw: () => draws.forEach((draw) => draw()) };
}

// What each position was taken for, beside the diagonal on which it should lie.
function positionChart(points) {
  const offsets = points.map(([position, used]) => used - position), span = Math.max(1, ...points.map(([position]) => position));
  // A small offset is not seen beside the diagonal: then it is drawn by itself.
  const isNear = Math.max(...offsets.map(Math.abs)) < span / 8;
  const drawn = (position, used) => (isNear ? used - position : used);
  const values = points.flatMap(([position, used]) => [drawn(position, used), drawn(position, position)]);
  const [low, high] = [Math.min(0, ...values), Math.max(1, ...values)], [from, to] = [Math.min(...points.map(([position]) => position)), Math.max(...points.map(([position]) => position))];
  const [width, height, left, bottom] = [420, 170, 54, 22];
  const x = (value) => left + 6 + (value - from) / Math.max(1, to - from) * (width - left - 16);
  const y = (value) => 8 + (1 - (value - low) / (high - low)) * (height - bottom - 14);
  const wrong = points.filter(([position, used]) => position !== used).length;
  const chart = svg('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', class: 'chart',
    'aria-label': `${wrong} of ${points.length} tokens were rotated as another position` });
  chart.append(
    svg('path', { class: 'rule', d: `M${x(from)},${y(drawn(from, from))}L${x(to)},${y(drawn(to, to))}` }),
    svg('path', { class: 'frame', d: `M${left},8V${height - bottom}H${width - 8}` }));
  for (const [position, used] of points) {
    const dot = svg('circle', { cx: x(position), cy: y(drawn(position, used)), r: 2.6, class: position === used ? 'right' : 'wrong' });
    dot.append(svg('title', {}, `position ${position} as ${Number(used.toPrecision(6))}`));
    chart.append(dot);
  }
  const label = (text, at, end) => svg('text', { ...at, 'text-anchor': end }, text);
  const tick = (value) => String(Number(value.toPrecision(4)));
  chart.append(label(String(from), { x: left + 6, y: height - 6 }, 'start'), label(`position → ${to}`, { x: width - 8, y: height - 6 }, 'end'),
    label(tick(high), { x: left - 5, y: y(high) + 4 }, 'end'), label(tick(low), { x: left - 5, y: y(low) + 4 }, 'end'),
    label(isNear ? 'off by' : 'used', { x: left - 5, y: (y(low) + y(high)) / 2 + 4 }, 'end'));
  return el('div', {}, chart, el('p', { class: 'muted small' }, `${wrong} of ${points.length} tokens are off the line`));
}

function kindsPicture(cells, title) {
  const bytes = bytesOf(cells.of), across = cells.columns, down = Math.ceil(bytes.length / across);
  const counts = cells.kinds.map((_, kind) => bytes.reduce((sum, byte) => sum + (byte === kind ? 1 : 0), 0));
  const isAngles = cells.names[1] === 'pair', isKeys = cells.names[1] === 'key';
  const shade = (kind) => {
    if (isAngles) return `var(--${ANGLE_SHADES[Math.min(kind, 4)]})`;
    if (kind === 0) return 'var(--w2)';
    if (isKeys && kind === 1) return 'var(--zero)';
    return KIND_COLOURS[(kind - 1) % KIND_COLOURS.length];
  };
  const canvas = el('canvas', { role: 'img', class: 'kinds', 'aria-label': `${title}: ${cells.kinds.map((kind, at) => `${kind} ${counts[at]}`).join(', ')}` });
  canvas.style.height = `${Math.max(24, Math.min(240, down * 8))}px`;
  canvas.style.maxWidth = `${Math.max(160, Math.min(down > across / 3 ? 300 : 560, across * 9))}px`;
  const draw = () => {
    canvas.width = across;
    canvas.height = down;
    const context = canvas.getContext('2d'), style = getComputedStyle(document.documentElement);
    const fills = cells.kinds.map((_, kind) => shade(kind).replace(/^var\((.*)\)$/, (_, name) => style.getPropertyValue(name)));
    bytes.forEach((byte, at) => { context.fillStyle = fills[byte]; context.fillRect(at % across, Math.floor(at / across), 1, 1); });
  };
  draw();
  canvas.addEventListener('mousemove', (event) => {
    const box = canvas.getBoundingClientRect(), part = (x, n) => Math.min(n - 1, Math.max(0, Math.floor(x * n)));
    const [row, column] = [part((event.clientY - box.top) / box.height, down), part((event.clientX - box.left) / box.width, across)];
    canvas.title = `${cells.names[0]} ${cells.first + row}, ${cells.names[1]} ${column}: ${cells.kinds[bytes[row * across + column]] || ''}`;
  });
  const keys = cells.kinds.map((kind, at) => (counts[at] ? el('span', { class: 'key' }, el('span', { class: 'sw', style: `background:${shade(at)}` }), `${kind}, ${group(counts[at])}`) : null));
  const node = el('div', {}, canvas,
    el('div', { class: 'axis', 'aria-hidden': 'true', style: `max-width:${canvas.style.maxWidth}` }, el('span', {}, `${cells.names[0]} ↓ ${cells.first}–${cells.first + down - 1}`), el('span', {}, `${cells.names[1]} → ${across}`)),
    el('div', { class: 'legend' }, keys));
  return { node, draw };
}

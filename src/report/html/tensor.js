// One tensor: its pictures, where its wrong elements are, and the worst of them.

const bytesOf = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
const pictureAt = new Map();
if (isRun) for (const picture of data.pictures) pictureAt.set(`${picture.beside ? 'b' : ''}${picture.step}/${picture.cell}`, picture);

// The picture of a cell in a step: the replay's, or the comparison's where steps or rows are others.
function findPicture(kind, step, cell) {
  const own = pictureAt.get(`${step}/${cell}`), beside = pictureAt.get(`b${step}/${cell}`);
  if (data.same_steps) return own || beside;
  return kind === 'added' ? own : beside;
}

const SIDES = [
  ['engine', 'Engine'], ['reference', 'Reference'], ['exact', 'f64 from the engine’s own inputs'],
];

// A value of a byte: its scale is one of square roots.
function decodeValue(byte, scale) {
  const code = byte > 127 ? byte - 256 : byte;
  if (code === 127) return null;
  if (code === -128) return NaN;
  return Math.sign(code) * (code / 126) ** 2 * scale;
}

// An error of a byte, in units of its limit; null where there is none.
function decodeError(byte) {
  if (byte === 0) return null;
  return byte === 255 ? Infinity : 10 ** (-3 + (byte - 1) / 253 * 10);
}

function valueColour(byte) {
  const code = byte > 127 ? byte - 256 : byte;
  if (code === 127) return null;
  if (code === -128) return colours.none;
  return between(code < 0 ? colours.minus : colours.plus, Math.abs(code) / 126);
}

function paint(canvas, picture, bytes, colourOf) {
  const [down, across] = picture.pixels;
  canvas.width = across;
  canvas.height = down;
  const context = canvas.getContext('2d'), image = context.createImageData(across, down);
  for (let at = 0; at < down * across; at++) {
    // What is not there is hatched, one pixel in two.
    const colour = colourOf(bytes[at]) || ((at + Math.floor(at / across)) % 2 ? colours.hatch : colours.gap);
    image.data.set([...colour, 255], at * 4);
  }
  context.putImageData(image, 0, 0);
}

const rangeWords = (name, from, to) => (from === to ? `${name} ${from}` : `${name} ${from}–${to}`);

// Which elements a pixel stands for.
function elementsOf(picture, at) {
  const across = picture.pixels[1], row = Math.floor(at / across), column = at % across;
  const ends = (i, n) => [n * picture.block[i], Math.min((n + 1) * picture.block[i], picture.size[i]) - 1];
  const [[top, bottom], [left, right]] = [ends(0, row), ends(1, column)];
  const wrapped = picture.names[0].endsWith('a row');
  if (wrapped) {
    const first = top * picture.size[1] + left, last = bottom * picture.size[1] + right;
    return rangeWords(picture.names[1], first, top === bottom ? last : Math.max(first, last));
  }
  const words = [];
  if (picture.size[0] > 1 || picture.names[0]) words.push(rowWords(picture, top, bottom));
  if (picture.group) {
    const outer = picture.names[1].split(' x ');
    const [a, b] = [Math.floor(left / picture.group), Math.floor(right / picture.group)];
    words.push(rangeWords(outer[0], a, b));
    if (a === b) words.push(rangeWords(outer[outer.length - 1], left % picture.group, right % picture.group));
  } else {
    words.push(rangeWords(picture.names[1], left, right));
  }
  if (picture.fixed) words.push(`${picture.fixed[0]} ${picture.fixed[1]}`);
  return words.filter(Boolean).join(', ');
}

// Rows that are tokens are told by their positions.
function rowWords(picture, top, bottom) {
  const name = picture.names[0];
  if (name === 'token' || name === 'query') {
    const position = (row) => picture.first_position + (picture.rows ? picture.rows[row] : row);
    return rangeWords('position', position(top), position(bottom));
  }
  return name ? rangeWords(name, top, bottom) : '';
}

function indexWords(picture, index) {
  return index.map((at, axis) => {
    const name = picture.axes[axis] || 'element';
    if (name !== 'token') return `${name} ${at}`;
    const token = axis === 0 && picture.rows ? picture.rows[at] : at;
    return `position ${picture.first_position + token}`;
  }).join(', ');
}

// All pictures of a tensor, with one cross that moves over all of them.
function buildPictures(picture) {
  const [down, across] = picture.pixels;
  const layers = [];
  for (const [key, title] of SIDES) {
    if (!picture[key]) continue;
    const bytes = bytesOf(picture[key]);
    layers.push({ key, title, note: '', bytes, colour: valueColour });
  }
  for (const kind of ['added', 'inherited']) {
    if (!picture[kind]) continue;
    const bytes = bytesOf(picture[kind]), limit = data[kind] ? data[kind].limit : 1;
    const title = kind === 'added' ? 'Engine − f64' : 'Engine − reference';
    const note = kind === 'added' ? 'in bounds' : 'in floors';
    layers.push({ key: kind, title, note, bytes, colour: (byte) => (byte === 0 ? null : colours.errors[level(decodeError(byte) / limit)]) });
  }
  const readout = el('p', { class: 'readout', 'aria-live': 'polite' });
  const crosses = [];
  let at = null;
  const values = (at) => layers.map(({ key, title, bytes }) => {
    if (key === 'added' || key === 'inherited') {
      const error = decodeError(bytes[at]);
      return error === null ? null : `${title.toLowerCase()} ${error <= 1e-3 ? 'under 0.001' : number(error)} ${KINDS[key].unit}`;
    }
    const value = decodeValue(bytes[at], picture.scale), name = key === 'exact' ? 'f64' : key;
    return value === null ? null : `${name} ≈ ${Number.isNaN(value) ? 'no number' : Number(value.toPrecision(2))}`;
  }).filter(Boolean).join(' · ');
  const idle = `${down * across < picture.size[0] * picture.size[1] ? `One pixel is ${picture.block[0]} × ${picture.block[1]} elements, shown by the one furthest off. ` : ''}Point at a pixel, or focus the pictures and use the arrow keys.`;
  function show(next) {
    at = next;
    for (const cross of crosses) cross.style.display = at === null ? 'none' : 'block';
    if (at === null) { readout.textContent = idle; return; }
    for (const cross of crosses) {
      Object.assign(cross.style, {
        left: `${100 * (at % across) / across}%`, top: `${100 * Math.floor(at / across) / down}%`,
        width: `max(6px, ${100 / across}%)`, height: `max(6px, ${100 / down}%)`,
      });
    }
    readout.textContent = `${elementsOf(picture, at)}: ${values(at) || 'nothing is expected here'}`;
  }
  const isFlat = down < 8;
  const figures = layers.map((layer) => {
    const canvas = el('canvas', { role: 'img', 'aria-label': `${layer.title}: ${summary(picture, layer)}` });
    // A pixel is as high as it is wide, within limits.
    canvas.style.aspectRatio = `${across} / ${Math.max(down, isFlat ? across / 16 : across / 4)}`;
    const cross = el('span', { class: 'cross' });
    crosses.push(cross);
    layer.canvas = canvas;
    const frame = el('div', { class: 'frame' }, canvas, cross);
    frame.addEventListener('mousemove', (event) => {
      const box = canvas.getBoundingClientRect();
      const part = (x, n) => Math.min(n - 1, Math.max(0, Math.floor(x * n)));
      show(part((event.clientY - box.top) / box.height, down) * across + part((event.clientX - box.left) / box.width, across));
    });
    frame.addEventListener('mouseleave', () => show(null));
    const [rows, columns] = picture.size;
    const rowName = picture.names[0] ? `${picture.names[0]} ↓ ${rows}` : '';
    return el('figure', {},
      el('figcaption', {}, el('span', {}, layer.title, layer.note && el('span', { class: 'muted' }, ` ${layer.note}`))),
      frame,
      el('div', { class: 'axis', 'aria-hidden': 'true' }, el('span', {}, rowName), el('span', {}, `${picture.names[1]} → ${columns}`)));
  });
  const host = el('div', {
    class: 'pictures', tabindex: 0, role: 'group', style: `--picture:${across > 70 ? 300 : 230}px`,
    'aria-label': 'Pictures of the tensor. Arrow keys move over the elements.',
    onkeydown: (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
      if (!move) return;
      event.preventDefault();
      const next = at === null ? 0 : at + move;
      if (next >= 0 && next < down * across) show(next);
    },
    onblur: () => show(null),
  }, figures);
  show(null);
  const draw = () => layers.forEach((layer) => paint(layer.canvas, picture, layer.bytes, layer.colour));
  draw();
  return { nodes: [host, readout], draw };
}

// A picture in a few words.
function summary(picture, layer) {
  const { key, bytes } = layer;
  if (key === 'added' || key === 'inherited') {
    const limit = data[key] ? data[key].limit : 1;
    let wrong = 0, all = 0;
    for (const byte of bytes) if (byte) { all++; wrong += decodeError(byte) > limit ? 1 : 0; }
    return `${wrong} of ${all} pixels beyond the limit`;
  }
  return `${picture.size[0]} by ${picture.size[1]} elements, magnitudes up to ${number(picture.scale)}`;
}

// Colours of values: from the most negative over nothing to the most positive.
function valueLegend(picture) {
  const stops = ['minus2', 'minus1', 'zero', 'plus1', 'plus2'].map((name) => `var(--${name})`).join(',');
  const most = Number(picture.scale.toPrecision(3));
  return el('div', { class: 'legend' },
    el('div', {},
      el('div', {}, 'values, on a scale of square roots'),
      el('span', { class: 'sw', style: `width:190px;background:linear-gradient(90deg,${stops})` }),
      el('div', { style: 'display:flex;justify-content:space-between;width:190px' },
        el('span', {}, `−${most}`), el('span', {}, '0'), el('span', {}, String(most)))));
}

// Of each axis, which indices have wrong elements.
function buildShares(picture) {
  const rows = picture.shares.map(([width, bins], axis) => {
    if (picture.shape[axis] < 2) return null;
    const name = picture.axes[axis] || `axis ${axis}`, n = picture.shape[axis];
    const [least, most] = [Math.min(...bins), Math.max(...bins)];
    const bars = svg('svg', { viewBox: `0 0 ${bins.length} 30`, preserveAspectRatio: 'none', role: 'img' });
    const hit = bins.filter((bin) => bin > 0).length;
    bars.setAttribute('aria-label', `${name}: wrong elements at ${hit} of ${bins.length} places along the axis`);
    bins.forEach((bin, at) => {
      if (!bin) return;
      const height = Math.max(2.5, 30 * bin / 1000), gap = bins.length > 64 ? 0.08 : 0.14;
      const bar = svg('rect', { x: at + gap / 2, width: 1 - gap, y: 30 - height, height });
      const from = at * width, to = Math.min(n, from + width) - 1, first = name === 'token' ? picture.first_position : 0;
      bar.append(svg('title', {}, `${rangeWords(name === 'token' ? 'position' : name, from + first, to + first)}: ${(bin / 10).toFixed(1)} % wrong`));
      bars.append(bar);
    });
    const own = name === 'token' ? `positions ${picture.first_position}–${picture.first_position + n - 1}` : `${n} ${name}s`;
    const even = most - least < 20;
    return el('div', { class: 'share' }, el('span', {}, own),
      even ? el('span', {}, `all alike, ${Number((most / 10).toFixed(1))} % wrong`) : bars);
  }).filter(Boolean);
  return rows.length ? [el('h4', {}, 'Where it is wrong ', el('span', { class: 'muted' }, 'share of wrong elements along each axis, to 100 %')), el('div', { class: 'shares' }, rows)] : [];
}

function buildFar(picture) {
  if (!picture.far.length) return [];
  const has = (key) => picture.far.some((far) => far[key] !== null);
  const columns = [
    ['Element', (far) => indexWords(picture, far.index), ''],
    ['Engine', (far) => far.engine, 'n'],
    has('reference') && ['Reference', (far) => far.reference, 'n'],
    has('exact') && ['f64', (far) => far.exact, 'n'],
    has('bound') && ['Bound', (far) => far.bound && Number(far.bound).toExponential(1), 'n'],
    has('added') && ['× bound', (far) => far.added && number(far.added === 'inf' ? Infinity : Number(far.added)), 'n'],
    has('inherited') && ['× floor', (far) => far.inherited && number(far.inherited === 'inf' ? Infinity : Number(far.inherited)), 'n'],
  ].filter(Boolean);
  const head = el('tr', {}, columns.map(([title, , kind]) => el('th', { scope: 'col', class: kind }, title)));
  const rows = picture.far.map((far) => el('tr', {}, columns.map(([, text, kind]) => el('td', { class: kind }, text(far) ?? '–'))));
  return [
    el('h4', {}, picture.far.length > 1 ? 'The elements furthest off' : 'The element furthest off'),
    el('div', { class: 'scroll', tabindex: 0, role: 'group', 'aria-label': 'The elements furthest off' },
      el('table', { class: 'plain' }, el('thead', {}, head), el('tbody', {}, rows))),
  ];
}

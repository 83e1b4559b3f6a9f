// Layers by sites: two maps, a step, and the cell that is looked at.
const KINDS = {
  added: { title: 'Error added here', unit: 'bounds', one: 'bound' },
  inherited: { title: 'Error inherited', unit: 'floors', one: 'floor' },
};

const isRun = data.kind === 'run';
const layers = isRun ? Math.max(1, data.layout.layers) : 0;
const guiltyCells = new Set(isRun ? data.findings.filter((one) => !one.is_undeclared).flatMap((one) => one.cells) : []);
const rowOf = (cell) => Math.floor(cell / layers);
const layerOf = (cell) => cell % layers;
const inLayer = (cell) => data.layout.sites[rowOf(cell)].part === 'layer';
const cellName = (cell) => (inLayer(cell) ? `blk.${layerOf(cell)}.` : '') + data.layout.sites[rowOf(cell)].name;

// What is looked at. A step of -1 is the worst of all.
const view = { kind: 'added', step: -1, cell: null };

// The number of a cell in a step: null where there is no such site, and a text where there is no number.
function valueOf(kind, step, cell) {
  const map = data[kind];
  const value = map && map.values[step + 1] ? map.values[step + 1][cell] : undefined;
  if (value === undefined) return 'unmeasured';
  if (value === null || value >= 0) return value;
  return value === -3 ? Infinity : value === -2 ? 'refused' : 'unmeasured';
}

function whyOf(kind, cell) {
  const map = data[kind];
  const found = map && map.why.find((reason) => reason.cells.includes(cell));
  if (found) return found.text;
  return kind === 'added' ? 'not recorded, so it is judged with the next recorded one' : 'not compared';
}

const isNumber = (value) => typeof value === 'number';

// Whether the model has such a site.
const isThere = (cell) => [data.added, data.inherited].some((map) => map && map.values[0][cell] !== null);

// A cell's error in words.
function errorWords(kind, value) {
  if (!isNumber(value)) return value;
  return `${number(value)} ${value === 1 ? KINDS[kind].one : KINDS[kind].unit}`;
}

// The step in which a cell is furthest off.
function worstStep(kind, cell) {
  const map = data[kind];
  if (!map) return 0;
  let best = 0, most = -4;
  for (let step = 0; step < map.steps.length; step++) {
    const value = valueOf(kind, step, cell), own = isNumber(value) ? value : -1;
    if (own > most) { most = own; best = step; }
  }
  return best;
}

function stepName(kind, step) {
  const map = data[kind];
  if (!map || !map.steps[step]) return `step ${step}`;
  const [first, tokens] = map.steps[step];
  if (!tokens) return `step ${step}`;
  return tokens === 1 ? `step ${step} · position ${first}` : `step ${step} · positions ${first}–${first + tokens - 1}`;
}

function buildMap(host) {
  const cellWidth = layers <= 8 ? 46 : layers <= 32 ? 21 : 13;
  const table = el('table', { class: 'map', role: 'grid', 'aria-label': 'Layers by sites', style: `--cell:${cellWidth}px` });
  const heads = [];
  const head = el('tr', { role: 'row' }, el('th', { role: 'columnheader', scope: 'col' }, el('span', { class: 'hidden' }, 'site')));
  for (let layer = 0; layer < layers; layer++) {
    const shown = layers <= 32 || layer % 5 === 0;
    const th = el('th', { role: 'columnheader', scope: 'col', 'aria-label': `layer ${layer}` }, shown ? String(layer) : '');
    heads.push(th);
    head.append(th);
  }
  table.append(el('thead', { role: 'rowgroup' }, head));
  const body = el('tbody', { role: 'rowgroup' });
  const cells = [], rows = [];
  data.layout.sites.forEach((site, row) => {
    const next = data.layout.sites[row + 1];
    const th = el('th', { role: 'rowheader', scope: 'row', title: `${site.what}${site.op ? `, ${site.op}` : ''}` }, site.name);
    const tr = el('tr', { role: 'row', class: next && next.part !== site.part ? 'edge' : null }, th);
    rows.push(th);
    for (let layer = 0; layer < layers; layer++) {
      const td = el('td', { role: 'gridcell', tabindex: -1 });
      td.dataset.cell = row * layers + layer;
      cells.push(td);
      tr.append(td);
    }
    body.append(tr);
  });
  table.append(body);
  body.addEventListener('click', (event) => {
    const td = event.target.closest('td');
    if (td && !td.classList.contains('none')) choose(Number(td.dataset.cell), true);
  });
  body.addEventListener('keydown', (event) => {
    const td = event.target.closest('td');
    if (!td) return;
    const at = Number(td.dataset.cell);
    if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault();
      choose(at, true);
      return;
    }
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: layers, ArrowUp: -layers };
    let next = at;
    if (event.key === 'Home') next = rowOf(at) * layers;
    else if (event.key === 'End') next = rowOf(at) * layers + layers - 1;
    else if (moves[event.key]) next = stepOver(at, moves[event.key]);
    else return;
    event.preventDefault();
    focusCell(cells[next] && !cells[next].classList.contains('none') ? next : at);
  });
  // Past cells that are none, within the row for left and right.
  function stepOver(at, move) {
    for (let next = at + move; next >= 0 && next < cells.length; next += move) {
      if (Math.abs(move) === 1 && rowOf(next) !== rowOf(at)) break;
      if (!cells[next].classList.contains('none')) return next;
    }
    if (Math.abs(move) === 1) return at;
    // Rows before and after the layers have one cell.
    const row = rowOf(at) + Math.sign(move);
    for (let layer = 0; row >= 0 && row < rows.length && layer < layers; layer++) {
      if (!cells[row * layers + layer].classList.contains('none')) return row * layers + layer;
    }
    return at;
  }
  function focusCell(at) {
    for (const td of cells) td.tabIndex = -1;
    cells[at].tabIndex = 0;
    cells[at].focus();
  }
  host.replaceChildren(table);

  return {
    draw() {
      const limit = data[view.kind] ? data[view.kind].limit : 1;
      const { unit } = KINDS[view.kind];
      let focusable = null;
      cells.forEach((td, at) => {
        const value = valueOf(view.kind, view.step, at), guilty = guiltyCells.has(at);
        const chosen = at === view.cell;
        if (!isThere(at)) {
          td.className = 'none';
          td.removeAttribute('aria-label');
          td.textContent = '';
          td.tabIndex = -1;
          td.setAttribute('aria-hidden', 'true');
          return;
        }
        td.removeAttribute('aria-hidden');
        const shade = isNumber(value) ? level(value / limit) : value === 'refused' ? 'refused' : 'hatched';
        td.className = shade + (guilty ? ' guilty' : '') + (chosen ? ' chosen' : '');
        td.textContent = layers <= 8 && isNumber(value) ? short(value) : '';
        const where = inLayer(at) ? `layer ${layerOf(at)} ` : '';
        const said = isNumber(value) ? `${number(value)} ${unit}${value > limit ? ', beyond' : ', within'}` : `${value}: ${whyOf(view.kind, at)}`;
        td.setAttribute('aria-label', `${where}${data.layout.sites[rowOf(at)].name}: ${said}${guilty ? ', guilty' : ''}`);
        td.title = `${cellName(at)}: ${said}${guilty ? ' (guilty operation)' : ''}`;
        td.setAttribute('aria-selected', String(chosen));
        td.tabIndex = -1;
        if (chosen || focusable === null) focusable = td;
      });
      if (focusable) focusable.tabIndex = 0;
      heads.forEach((th, layer) => th.classList.toggle('on', view.cell !== null && inLayer(view.cell) && layerOf(view.cell) === layer));
      rows.forEach((th, row) => th.classList.toggle('on', view.cell !== null && rowOf(view.cell) === row));
    },
  };
}

// What the colours mean, in the map's own unit.
function legend(kind) {
  const map = data[kind], limit = map ? map.limit : 1, { unit } = KINDS[kind];
  const edge = (x) => (x >= 1e3 ? x.toExponential(0).replace('e+', 'e') : String(Number(x.toPrecision(2))));
  const within = [['w0', 0.1], ['w1', 0.5], ['w2', 1]].map(([name, part]) => [name, edge(part * limit)]);
  const beyond = [0, 1, 2, 3, 4, 5].map((n) => [`b${n}`, edge(limit * 10 ** (n + 1))]);
  const swatch = ([name, text], at) => el('span', at === 3 ? { class: 'limit' } : {}, el('span', { class: `sw ${name}` }), text);
  const last = el('span', {}, el('span', { class: 'sw b6' }), 'more');
  return el('div', { class: 'legend', role: 'note', 'aria-label': `Colours: upper ends in ${unit}; beyond ${limit} is wrong` },
    el('div', {},
      el('div', {}, `upper ends in ${unit}; the limit is ${limit}`),
      el('div', { class: 'ramp small' }, [...within, ...beyond].map(swatch), last)),
    el('span', { class: 'key' }, el('span', { class: 'sw b7' }), 'no number'),
    el('span', { class: 'key' }, el('span', { class: 'sw hatched' }), 'unmeasured'),
    guiltyCells.size > 0 && el('span', { class: 'key' }, el('span', { class: 'sw ring' }), 'guilty operation'));
}

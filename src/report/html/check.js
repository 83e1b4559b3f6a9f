// The page of a check: the matrix, what failed, and what got less accurate.
const VERDICTS = {
  equal: ['=', 'equal'], diverged: ['≠', 'diverged'], regressed: ['↓', 'less accurate than the baseline'],
  unmeasured: ['?', 'not enough measured'], refused: ['×', 'refused'], failed: ['!', 'failed to run'],
};

// What tells columns apart: dtype, the parts of the variant, device; without what all have in common.
function columnParts(cases) {
  const parts = (one) => [['dtype', one.dtype], ...one.variant.split(',').filter(Boolean).map((part) => (part.includes('=') ? part.split('=') : ['variant', part])), ['device', one.device]].filter(([, value]) => value);
  const names = [...new Set(cases.flatMap((one) => parts(one).map(([name]) => name)))];
  const values = (one) => names.map((name) => (parts(one).find(([own]) => own === name) || [name, ''])[1]);
  const all = cases.map(values);
  const differing = names.filter((_, at) => new Set(all.map((own) => own[at])).size > 1);
  const common = names.filter((name) => !differing.includes(name)).map((name) => `${name} ${all[0][names.indexOf(name)]}`);
  return { differing, common, of: (one) => differing.map((name) => values(one)[names.indexOf(name)]) };
}

function buildMatrix(pick) {
  const columns = columnParts(data.cases);
  const key = (parts) => parts.join('\u0000');
  const keys = new Map(), rows = new Map();
  for (const one of data.cases) {
    const parts = columns.of(one);
    keys.set(key(parts), parts);
    const row = `${one.model} / ${one.prompt}`;
    if (!rows.has(row)) rows.set(row, new Map());
    rows.get(row).set(key(parts), one);
  }
  const order = [...keys.keys()].sort((a, b) => {
    const [x, y] = [keys.get(a), keys.get(b)];
    for (let at = 0; at < x.length; at++) if (x[at] !== y[at]) return x[at] < y[at] ? -1 : 1;
    return 0;
  });
  const table = el('table', { class: 'matrix', role: 'grid', 'aria-label': 'Cases: models and prompts by variants' });
  const head = el('thead', { role: 'rowgroup' });
  columns.differing.forEach((name, depth) => {
    const tr = el('tr', { role: 'row' }, el('th', { role: 'columnheader' }, name));
    for (let at = 0; at < order.length;) {
      const same = (other) => keys.get(order[at]).slice(0, depth + 1).every((part, i) => part === keys.get(order[other])[i]);
      let end = at + 1;
      while (end < order.length && same(end)) end++;
      tr.append(el('th', { role: 'columnheader', scope: 'colgroup', colspan: end - at }, keys.get(order[at])[depth] || '–'));
      at = end;
    }
    head.append(tr);
  });
  const body = el('tbody', { role: 'rowgroup' }), cells = [];
  for (const [name, own] of rows) {
    const tr = el('tr', { role: 'row' }, el('th', { role: 'rowheader', scope: 'row' }, name));
    for (const column of order) {
      const one = own.get(column);
      if (!one) { tr.append(el('td', { class: 'none', role: 'gridcell', 'aria-hidden': 'true' })); cells.push(null); continue; }
      const [sign, words] = VERDICTS[one.verdict];
      const td = el('td', { role: 'gridcell', tabindex: -1, class: `v-${one.verdict}`, title: `${one.id}: ${words}`, 'aria-label': `${one.id}: ${words}`, onclick: () => open(td) }, sign);
      td.one = one;
      cells.push(td);
      tr.append(td);
    }
    body.append(tr);
  }
  function open(td) {
    for (const other of cells) if (other) { other.tabIndex = -1; other.classList.toggle('chosen', other === td); other.setAttribute('aria-selected', String(other === td)); }
    td.tabIndex = 0;
    pick(td.one);
  }
  body.addEventListener('keydown', (event) => {
    const at = cells.indexOf(document.activeElement);
    if (at < 0) return;
    if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); open(cells[at]); return; }
    const move = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: order.length, ArrowUp: -order.length }[event.key];
    if (!move) return;
    event.preventDefault();
    for (let next = at + move; next >= 0 && next < cells.length; next += move) {
      if (!cells[next]) continue;
      cells[at].tabIndex = -1;
      cells[next].tabIndex = 0;
      cells[next].focus();
      break;
    }
  });
  table.append(head, body);
  const first = data.cases.find((one) => one.verdict !== 'equal') || data.cases[0];
  const begin = cells.find((td) => td && td.one === first);
  return { table, common: columns.common, isWide: order.length > 10, start: () => begin && open(begin) };
}

function movedTable(list, title) {
  if (!list.length) return [];
  const row = (one) => el('tr', {}, el('td', { class: 'mono' }, one.operation), el('td', {}, one.measure),
    el('td', { class: 'n' }, number(one.was)), el('td', { class: 'n' }, number(one.now)),
    el('td', { class: 'n' }, one.was > 0 ? `${number(one.now / one.was)} ×` : 'was exact'), el('td', { class: 'n' }, number(one.most)));
  const heads = [['Operation', ''], ['Error', ''], ['Baseline', 'n'], ['Now', 'n'], ['Change', 'n'], ['Chance explains', 'n']];
  return [el('h4', {}, title, el('span', { class: 'muted' }, ' errors in bounds')), el('div', { class: 'scroll', tabindex: 0, role: 'group', 'aria-label': title },
    el('table', { class: 'plain' }, el('thead', {}, el('tr', {}, heads.map(([text, kind]) => el('th', { scope: 'col', class: kind }, text)))), el('tbody', {}, list.map(row))))];
}

function buildCase(host, one) {
  const [, words] = VERDICTS[one.verdict];
  host.replaceChildren(
    el('div', { class: 'title' }, el('h3', {}, one.id)),
    el('p', { class: 'said' }, el('span', { class: one.verdict === 'equal' ? '' : 'bad' }, capital(words)), ` · ${one.seconds.toFixed(1)} s`),
    el('p', { style: 'margin-top:10px;overflow-wrap:anywhere' }, one.text || 'Its text was left out because the page has no room for it.'),
    ...one.guilty.length ? [el('h4', {}, 'Guilty'), el('ul', { class: 'notes', style: 'margin-top:0' }, one.guilty.map(([text, place]) => el('li', {}, text, place && [' ', el('code', { class: 'muted' }, place)])))] : [],
    ...one.place && !one.guilty.length ? [el('p', { class: 'muted' }, el('code', {}, one.place))] : [],
    ...movedTable(one.regressed, 'Less accurate than the baseline'),
    ...movedTable(one.improved, 'More accurate than the baseline'));
}

function buildFailed() {
  const failed = data.cases.filter((one) => one.verdict !== 'equal');
  if (!failed.length) return;
  const groups = new Map();
  for (const one of failed) {
    const reasons = one.guilty.length ? one.guilty.map(([text, place]) => [text, place]) : [[one.text, one.place]];
    for (const [text, place] of reasons) {
      const key = `${place || ''}\u0000${place ? '' : text}`;
      if (!groups.has(key)) groups.set(key, { text, place, cases: new Set() });
      groups.get(key).cases.add(one.id);
    }
  }
  const rows = [...groups.values()].map(({ text, place, cases }) => el('tr', {},
    el('td', { class: 'wrap' }, text), el('td', { class: 'mono' }, place || '–'), el('td', { class: 'n' }, String(cases.size)), el('td', { class: 'mono' }, [...cases][0])));
  const heads = [['What', ''], ['Where', ''], ['Cases', 'n'], ['First', '']];
  section('failed', 'What failed', 'Failures in the same place share one line, in whichever case they occur.', el('div', { class: 'scroll', tabindex: 0, role: 'group', 'aria-label': 'What failed' },
    el('table', { class: 'plain' }, el('thead', {}, el('tr', {}, heads.map(([text, kind]) => el('th', { scope: 'col', class: kind }, text)))), el('tbody', {}, rows))));
}

function buildCheck() {
  const count = (verdict) => data.cases.filter((one) => one.verdict === verdict).length;
  const failed = data.cases.length - count('equal');
  const verdict = data.exit === 0 ? `All ${plural(data.cases.length, 'case')} equal` : failed ? `${failed} of ${plural(data.cases.length, 'case')} not equal` : 'Nothing was checked';
  fillAnswer(verdict, Object.keys(VERDICTS).filter(count).map((name) => [String(count(name)), VERDICTS[name][1]]));
  const headline = document.getElementById('headline');
  headline.textContent = headline.textContent.replace(/^\d+ of \d+ cases[^;]*; first /, 'First ');
  document.getElementById('subject').textContent = 'check';
  if (data.cases.length) {
    const detail = el('div', { class: 'detail', id: 'detail' });
    const matrix = buildMatrix((one) => buildCase(detail, one));
    const common = matrix.common.length ? `All cases: ${matrix.common.join(', ')}. ` : '';
    section('matrix', 'Models and prompts by variants', `${common}Choose a case to read its answer.`,
      el('div', { class: `two${matrix.isWide ? ' wide' : ''}` }, el('div', { class: 'left' }, el('div', { class: 'map-scroll' }, matrix.table),
        el('div', { class: 'legend below' }, Object.entries(VERDICTS).filter(([name]) => count(name)).map(([name, [sign, words]]) => el('span', { class: 'key' }, el('span', { class: `sw v v-${name}` }, sign), words)))), detail));
    matrix.start();
  }
  buildFailed();
  buildSetup();
  buildCommands();
}

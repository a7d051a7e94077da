'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const byId = (id) => document.getElementById(id);

// Adds children as text nodes, never parsed as HTML, because a row may hold any string.
function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// num and score follow short and score in formats.py, so all tables print the same digits.
function score(value) {
  if (typeof value !== 'number' || Math.abs(value) < 0.1 || Math.abs(value) >= 100) return num(value);
  return value.toFixed(Math.abs(value) < 9.995 ? 2 : 1);
}

function num(value) {
  if (value === null || value === undefined) return '–';
  if (typeof value !== 'number') return String(value);
  if (Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
}

const unique = (values) => [...new Set(values)].sort((a, b) => a - b);
const plural = (n, word) => `${num(n)} ${word}${n === 1 ? '' : 's'}`;

function picture(cell) {
  if (!cell || !cell.sprite) {
    return make('div', {class: 'empty'}, cell ? 'measured, but no pictures were saved' : 'not measured here');
  }
  const alt = `Samples of ${cell.label}, ${plural(cell.num_steps, 'step')}, w = ${num(cell.w)}`;
  return make('img', {class: 'sprite', src: `data:image/png;base64,${cell.sprite}`, alt});
}

// The picture viewer: two sliders choose the w and the number of steps of each panel.
(function viewer() {
  const students = data.cells.filter((c) => c.model === 'student');
  const teachers = data.cells.filter((c) => c.model === 'teacher');
  const shown = students.length ? students : data.cells;
  const ws = unique(shown.map((c) => c.w));
  const steps = unique(shown.map((c) => c.num_steps));
  if (!data.cells.some((c) => c.sprite)) {
    byId('viewer').hidden = true;
    return;
  }
  document.documentElement.style.setProperty('--ratio', data.across[0] / data.across[1]);

  const find = (label, n, w) =>
    data.cells.find((c) => c.label === label && c.num_steps === n && c.w === w);
  const labels = (cells) => [...new Set(cells.map((c) => c.label))];

  function panel(name, choices) {
    const title = make('h3', {}, name);
    let choose = null;
    if (choices.length > 1) {
      choose = make('select', {'aria-label': `${name}: which sampler`});
      for (const label of choices) choose.append(make('option', {value: label}, label.replace(/^\w+,? /, '')));
      choose.addEventListener('change', update);
      title.append(choose);
    }
    const body = make('div'), facts = make('p');
    byId('panels').append(make('div', {class: 'panel'}, title, body, facts));
    return {
      label: () => (choose ? choose.value : choices[0]),
      show(cell) {
        body.replaceChildren(picture(cell));
        facts.replaceChildren();
        if (!cell) return;
        facts.append(`${plural(cell.num_steps, 'step')}, ${plural(cell.network_calls, 'network call')} · FD `,
          make('b', {}, score(cell.fd)), ` · IS ${score(cell.inception_score)}`);
        if (cell.rms_teacher !== null) facts.append(` · rms ${num(cell.rms_teacher)}`);
      },
    };
  }

  function slider(id, values, start, text) {
    const input = byId(id);
    input.max = values.length - 1;
    input.value = Math.max(0, values.indexOf(start));
    input.disabled = values.length < 2;
    byId(`${id}-ticks`).replaceChildren(...values.map((v) => make('span', {}, num(v))));
    input.addEventListener('input', update);
    return () => {
      const value = values[Number(input.value)];
      input.setAttribute('aria-valuetext', text(value));
      byId(`${id}-now`).textContent = text(value) + (values.length < 2 ? ' (the only one)' : '');
      return value;
    };
  }

  const middle = ws[Math.floor((ws.length - 1) / 2)];
  const w = slider('w', ws, middle, (v) => `w = ${num(v)}`);
  const nearest = [...steps].sort((a, b) => Math.abs(Math.log2(a / 4)) - Math.abs(Math.log2(b / 4)))[0];
  const count = slider('steps', steps, nearest, (v) => plural(v, 'step'));
  const reference = panel('Teacher reference', []);
  const baseline = panel('Teacher, same steps', labels(teachers));
  const student = panel('Student', labels(students));

  function update() {
    const [nowW, nowSteps] = [w(), count()];
    const [, index] = data.references.find(([value]) => value === nowW);
    reference.show(index === null ? undefined : data.cells[index]);
    baseline.show(find(baseline.label(), nowSteps, nowW));
    student.show(find(student.label(), nowSteps, nowW));
  }
  update();
})();

// Fills the table that shows every row with every column.
(function allRows() {
  const table = byId('all'), filters = byId('filters');
  if (!data.rows.length) {
    table.append(make('caption', {class: 'missing'}, 'No rows yet.'));
    return;
  }
  const isText = (c) => data.rows.some((r) => typeof r[c] === 'string' || typeof r[c] === 'boolean');
  const text = new Set(data.columns.filter(isText));
  let sort = null, down = false;
  const search = make('input', {type: 'search', placeholder: 'any text'});
  const chosen = {};
  filters.append(make('label', {}, 'Search', search));
  search.addEventListener('input', draw);
  for (const column of ['model', 'sampler', 'num_steps', 'w', 'grid']) {
    const values = [...new Set(data.rows.map((r) => r[column]).filter((v) => v !== null && v !== undefined))];
    if (values.length < 2) continue;
    values.sort((a, b) => (typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b))));
    const select = make('select', {}, make('option', {value: ''}, 'all'));
    for (const v of values) select.append(make('option', {value: String(v)}, num(v)));
    select.addEventListener('change', draw);
    chosen[column] = select;
    filters.append(make('label', {}, column, select));
  }
  const count = make('output', {class: 'note'});
  filters.append(count);
  const heads = data.columns.map((column) => {
    const button = make('button', {type: 'button'}, column);
    button.addEventListener('click', () => {
      [sort, down] = sort !== column ? [column, false] : down ? [null, false] : [column, true];
      draw();
    });
    return make('th', {scope: 'col', class: text.has(column) ? 'text' : ''}, button);
  });
  const body = make('tbody');
  table.append(make('thead', {}, make('tr', {}, ...heads)), body);

  function compare(a, b) {
    const [x, y] = [a[sort] ?? null, b[sort] ?? null];
    if (x === null || y === null) return (x === null) - (y === null);  // unknown values come last in both directions
    const order = typeof x === 'number' && typeof y === 'number' ? x - y : String(x).localeCompare(String(y));
    return down ? -order : order;
  }

  function draw() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let rows = data.rows.filter((r) => {
      if (Object.entries(chosen).some(([c, s]) => s.value !== '' && String(r[c]) !== s.value)) return false;
      const line = Object.values(r).join(' ').toLowerCase();
      return words.every((word) => line.includes(word));
    });
    if (sort !== null) rows = [...rows].sort(compare);
    heads.forEach((th, i) => {
      const now = data.columns[i] === sort ? (down ? 'descending' : 'ascending') : 'none';
      th.setAttribute('aria-sort', now);
    });
    body.replaceChildren(...rows.map((r) => make('tr', {}, ...data.columns.map((c) =>
      make('td', {class: text.has(c) ? 'text' : ''}, num(r[c]))))));
    count.textContent = `${rows.length} of ${data.rows.length} rows`;
  }
  draw();
})();

// Shows one strip of sample pictures for each round, all at the same w.
(function rounds() {
  const strips = byId('strips'), choose = byId('round-w');
  const ws = unique(data.rounds.flatMap((r) => r.cells.map(([w]) => w)));
  if (!ws.length) {
    choose.parentElement.hidden = true;
    strips.append(make('p', {class: 'missing'}, 'No pictures were saved for any round.'));
    return;
  }
  const down = Math.min(2, data.across[1]);
  document.documentElement.style.setProperty('--strip', data.across[0] / down);
  for (const w of ws) choose.append(make('option', {value: w}, num(w)));
  choose.value = ws[Math.floor((ws.length - 1) / 2)];
  choose.addEventListener('change', draw);

  function draw() {
    strips.replaceChildren(...data.rounds.map(({name, cells}) => {
      const found = cells.find(([w]) => w === Number(choose.value));
      const cell = found && data.cells[found[1]];
      const line = cell
        ? `${name} · ${plural(cell.num_steps, 'step')} · FD ${score(cell.fd)}`
        : `${name} · no pictures at this w`;
      const figure = make('figure', {}, make('figcaption', {}, line));
      if (cell) figure.append(make('div', {class: 'window'}, picture(cell)));
      return figure;
    }));
  }
  draw();
})();

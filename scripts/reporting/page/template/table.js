"use strict";
// A table that is sorted by a click on a column's name, and filtered by words and choices.

const MOST_ROWS = 300; // more are shown on demand: the browser needs seconds for ten thousand

function element(name, properties = {}, children = []) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

function compare(a, b) {
  // What is not there comes last, whatever the direction; numbers before words ("all").
  const [x, y] = [Number(a), Number(b)];
  if (a !== "" && b !== "" && !Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

class DataTable {
  // columns: [{key, label, number (decimals), choose, mark, title}]; keep: where the view's state
  // is remembered; isShown: a further filter; onPick: called with a row that is clicked.
  constructor(host, columns, rows, { keep, isShown = () => true, onPick = null }) {
    Object.assign(this, { host, columns, rows, isShown, onPick, keep });
    keep.words ??= "";
    keep.choices ??= {};
    keep.sort ??= null;
    keep.down ??= false;
    this.all = false;
    for (const column of columns) {
      // A narrow screen leaves out what says the same in every row.
      column.constant = rows.length > 1 && rows.every((row) => row[column.key] === rows[0][column.key]);
    }
    this.texts = rows.map((row) => columns.map((c) => row[c.key] ?? "").join(" ").toLowerCase());
    this.build();
    this.draw();
  }

  build() {
    const search = element("input", { type: "search", placeholder: "Filter: words", value: this.keep.words });
    search.setAttribute("aria-label", "Filter the table by words");
    search.addEventListener("input", () => { this.keep.words = search.value; this.draw(); });
    this.count = element("span", { className: "quiet" });
    const tools = [search, ...this.columns.filter((c) => c.choose).map((c) => this.chooser(c)), this.count];
    this.heads = this.columns.map((column) => this.head(column));
    this.body = element("tbody");
    const table = element("table", {}, [
      element("thead", {}, [element("tr", {}, this.heads)]), this.body]);
    this.more = element("button", { type: "button", textContent: "Show all rows" });
    this.more.addEventListener("click", () => { this.all = true; this.draw(); });
    this.host.replaceChildren(
      element("div", { className: "tools" }, tools.filter(Boolean)),
      element("div", { className: "scroll" }, [table]), this.more);
  }

  chooser(column) {
    const values = [...new Set(this.rows.map((row) => String(row[column.key] ?? "")))];
    if (values.length < 2) return null; // nothing to choose
    const select = element("select", {}, [
      element("option", { value: "", textContent: `every ${column.label}` }),
      ...values.map((value) => element("option", { value, textContent: value }))]);
    select.setAttribute("aria-label", `Show one ${column.label}`);
    select.dataset.key = column.key;
    if (values.includes(this.keep.choices[column.key])) select.value = this.keep.choices[column.key];
    else delete this.keep.choices[column.key];
    select.addEventListener("change", () => { this.keep.choices[column.key] = select.value; this.draw(); });
    return select;
  }

  head(column) {
    const button = element("button", { type: "button", textContent: column.label });
    button.addEventListener("click", () => {
      // Numbers are looked at from the largest on.
      const first = column.number !== undefined;
      this.keep.down = this.keep.sort === column.key ? !this.keep.down : first;
      this.keep.sort = column.key;
      this.draw();
    });
    const cell = element("th", { scope: "col" }, [button]);
    if (column.number !== undefined) cell.className = "number";
    cell.classList.toggle("constant", column.constant);
    cell.dataset.key = column.key;
    return cell;
  }

  selected() {
    const words = this.keep.words.toLowerCase().split(/\s+/).filter(Boolean);
    const choices = Object.entries(this.keep.choices).filter(([, value]) => value !== "");
    const found = this.rows.filter((row, place) =>
      this.isShown(row)
      && words.every((word) => this.texts[place].includes(word))
      && choices.every(([key, value]) => String(row[key] ?? "") === value));
    if (this.keep.sort === null) return found;
    const key = this.keep.sort;
    const [there, absent] = [found.filter((r) => r[key] != null), found.filter((r) => r[key] == null)];
    there.sort((a, b) => compare(a[key], b[key]) * (this.keep.down ? -1 : 1));
    return [...there, ...absent];
  }

  draw() {
    const found = this.selected();
    const shown = this.all ? found : found.slice(0, MOST_ROWS);
    this.count.textContent = `${found.length} of ${this.rows.length}`;
    this.more.hidden = shown.length === found.length;
    for (const head of this.heads) {
      const own = head.dataset.key === this.keep.sort;
      head.setAttribute("aria-sort", own ? (this.keep.down ? "descending" : "ascending") : "none");
    }
    this.body.replaceChildren(...shown.map((row) => this.line(row)));
  }

  line(row) {
    const line = element("tr", {}, this.columns.map((column) => this.cell(row, column)));
    if (this.onPick) {
      line.className = "link";
      line.tabIndex = 0;
      const pick = () => {
        this.body.querySelector("[aria-selected]")?.removeAttribute("aria-selected");
        line.setAttribute("aria-selected", "true");
        this.onPick(row);
      };
      line.addEventListener("click", pick);
      line.addEventListener("keydown", (event) => { if (event.key === "Enter") pick(); });
    }
    return line;
  }

  cell(row, column) {
    const value = row[column.key];
    const number = typeof value === "number" && column.number !== undefined;
    const text = value == null ? "-" : number ? value.toFixed(column.number) : String(value);
    const cell = element("td", { textContent: column.mark && value > 0 ? `+${text}` : text });
    cell.className = column.number === undefined ? "text" : "number";
    cell.classList.toggle("constant", column.constant);
    if (column.mark && value != null) cell.classList.add(value < 0 ? "worse" : "better");
    const title = column.title ? row[column.title] : column.number === undefined ? text : "";
    if (title) cell.title = title;
    return cell;
  }
}

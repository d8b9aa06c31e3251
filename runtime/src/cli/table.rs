//! Tables that fit the terminal: columns as wide as their content, the widest give way first.

use console::{Alignment, measure_text_width, pad_str, truncate_str};

const GAP: usize = 2;
/// A column is not cut below this.
const COLUMN_MIN: usize = 6;

#[derive(Debug, Clone, Default)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
    /// Said instead of a table without rows.
    empty: String,
}

#[derive(Debug, Clone)]
struct Column {
    name: &'static str,
    right: bool,
}

/// One cell and how loud it is.
#[derive(Debug, Clone)]
pub struct Cell {
    text: String,
    tone: Tone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Good,
    Warning,
    Bad,
    Quiet,
}

impl Cell {
    pub fn toned(text: impl Into<String>, tone: Tone) -> Cell {
        Cell { text: text.into(), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Cell {
        Cell::toned(text, Tone::Plain)
    }
}

impl Table {
    /// Column names; one that starts with `>` holds numbers and is aligned to the right.
    pub fn new(columns: &[&'static str], empty: &str) -> Table {
        let column = |name: &&'static str| match name.strip_prefix('>') {
            Some(name) => Column { name, right: true },
            None => Column { name, right: false },
        };
        Table { columns: columns.iter().map(column).collect(), rows: Vec::new(), empty: empty.to_owned() }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        // A control character in somebody's data must not move the cursor.
        let clean = |cell: Cell| Cell { text: printable(&cell.text), ..cell };
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    pub fn render(&self, width: Option<usize>, colours: bool) -> String {
        if self.rows.is_empty() {
            return format!("{}\n", self.empty);
        }
        let widths = self.widths(width);
        let mut text = String::new();
        let header = self.columns.iter().map(|column| (column.name, Tone::Quiet));
        self.line(&mut text, header, &widths, colours);
        for row in &self.rows {
            self.line(&mut text, row.iter().map(|cell| (cell.text.as_str(), cell.tone)), &widths, colours);
        }
        text
    }

    fn line<'a>(
        &self,
        text: &mut String,
        cells: impl Iterator<Item = (&'a str, Tone)>,
        widths: &[usize],
        colours: bool,
    ) {
        let mut line = String::new();
        for ((cell, tone), (column, &width)) in cells.zip(self.columns.iter().zip(widths)) {
            if width == 0 {
                continue;
            }
            if !line.is_empty() {
                line.push_str(&" ".repeat(GAP));
            }
            let side = if column.right { Alignment::Right } else { Alignment::Left };
            let padded = pad_str(&truncate_str(cell, width, "…"), width, side, None).into_owned();
            match tone.code().filter(|_| colours) {
                Some(code) => line.push_str(&format!("\x1b[{code}m{padded}\x1b[0m")),
                None => line.push_str(&padded),
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }

    /// Content widths, cut to the terminal: the widest column gives way until it is as narrow as
    /// the next. Columns that are empty in every row are left out when the rest does not fit.
    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let content = |at: usize| self.rows.iter().map(move |row| row.get(at).map_or(0, cell_width)).max();
        let mut widths: Vec<usize> = (0..self.columns.len())
            .map(|at| measure_text_width(self.columns[at].name).max(content(at).unwrap_or(0)))
            .collect();
        let Some(limit) = limit else { return widths };
        let total = |widths: &[usize]| {
            let shown = widths.iter().filter(|&&width| width > 0).count();
            widths.iter().sum::<usize>() + GAP * shown.saturating_sub(1)
        };
        if total(&widths) > limit {
            for (at, width) in widths.iter_mut().enumerate() {
                if content(at) == Some(0) {
                    *width = 0;
                }
            }
        }
        while total(&widths) > limit {
            let widest = widths.iter().copied().max().unwrap_or(0);
            if widest <= COLUMN_MIN {
                break;
            }
            if let Some(width) = widths.iter_mut().rev().find(|width| **width == widest) {
                *width -= 1;
            }
        }
        widths
    }
}

fn cell_width(cell: &Cell) -> usize {
    measure_text_width(&cell.text)
}

impl Tone {
    /// SGR code of the colour.
    fn code(self) -> Option<u8> {
        match self {
            Tone::Plain => None,
            Tone::Good => Some(32),
            Tone::Warning => Some(33),
            Tone::Bad => Some(31),
            Tone::Quiet => Some(2),
        }
    }
}

/// The text with control characters shown rather than obeyed.
pub fn printable(text: &str) -> String {
    if text.chars().any(char::is_control) {
        text.chars()
            .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
            .collect()
    } else {
        text.to_owned()
    }
}

/// The same of a text of several lines, which stay lines.
pub fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// 27,004: digits in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&["NAME", ">LAG", "REASON"], "nothing is deployed");
        let long =
            "the handler trapped at offset 12: wasm `unreachable` instruction executed in count::handle";
        table.row(["word-count".into(), Cell::toned("0", Tone::Good), "".into()]);
        table.row(["flights".into(), Cell::toned(grouped(27_004), Tone::Bad), long.into()]);
        table
    }

    #[test]
    fn a_table_fits_eighty_columns_and_keeps_its_numbers_whole() {
        let text = sample().render(Some(80), false);
        assert_eq!(
            text,
            "NAME           LAG  REASON\n\
             word-count       0\n\
             flights     27,004  the handler trapped at offset 12: wasm `unreachable` instru…\n"
        );
        assert!(text.lines().all(|line| measure_text_width(line) <= 80));
        let narrow = sample().render(Some(40), false);
        assert!(narrow.lines().all(|line| measure_text_width(line) <= 40), "{narrow}");
    }

    #[test]
    fn a_pipe_gets_everything_and_an_empty_table_says_so() {
        assert!(sample().render(None, false).contains("count::handle"));
        assert_eq!(
            Table::new(&["NAME"], "nothing is deployed").render(Some(80), true),
            "nothing is deployed\n"
        );
    }

    #[test]
    fn colours_do_not_change_the_layout_and_data_cannot_move_the_cursor() {
        let plain = sample().render(Some(60), false);
        let coloured = sample().render(Some(60), true);
        assert!(coloured.contains("\x1b[31m"));
        let stripped = console::strip_ansi_codes(&coloured).into_owned();
        let trimmed: Vec<_> = stripped.lines().map(str::trim_end).collect();
        assert_eq!(trimmed, plain.lines().collect::<Vec<_>>());
        let mut table = Table::new(&["KEY"], "");
        table.row(["a\x1b[2Jb\n".into()]);
        assert_eq!(table.render(None, false), "KEY\na\\u{1b}[2Jb\\n\n");
    }
}

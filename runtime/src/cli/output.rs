//! What a command prints: tables for people, JSON for programs, from one [`View`].

use std::io::{IsTerminal, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::ValueEnum;
use serde_json::{Value, json};

use super::failure::Failure;
use super::table::{Table, grouped, printable_lines};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: fits the terminal
    Table,
    /// For programs
    Json,
}

/// One result in both forms.
#[derive(Debug, Default)]
pub struct View {
    pub blocks: Vec<Block>,
    pub json: Value,
}

#[derive(Debug)]
pub enum Block {
    Table(Table),
    Line(String),
}

impl View {
    pub fn table(table: Table, json: Value) -> View {
        View { blocks: vec![Block::Table(table)], json }
    }

    pub fn line(line: impl Into<String>, json: Value) -> View {
        View { blocks: vec![Block::Line(line.into())], json }
    }

    /// Says that there is more than so many rows, which these options of the command show, or the next page.
    pub fn note_more(&mut self, shown: usize, options: &str, page_token: &[u8]) {
        if page_token.is_empty() {
            return;
        }
        let (shown, token) = (grouped(shown as u64), STANDARD.encode(page_token));
        self.blocks.push(Block::Line(format!(
            "the first {shown}; {options} gives more, --page-token {token} the next"
        )));
        self.json["next_page_token"] = json!(token);
    }

    /// As text for a terminal of this width, or for a pipe (`None`), where nothing is cut.
    pub fn render(&self, width: Option<usize>, colours: bool) -> String {
        let mut text = String::new();
        for block in &self.blocks {
            match block {
                Block::Table(table) => text.push_str(&table.render(width, colours)),
                Block::Line(line) => {
                    // A program gets somebody's data as it is; on a terminal it must not move the cursor.
                    match width {
                        Some(_) => text.push_str(&printable_lines(line)),
                        None => text.push_str(line),
                    }
                    text.push('\n');
                }
            }
        }
        text
    }

    pub fn print(&self, format: Format) -> Result<(), Failure> {
        let text = match format {
            Format::Table => self.render(terminal_width(), colours()),
            // One line, so that `--watch` gives one object a line and `jq` is happy either way.
            Format::Json if std::io::stdout().is_terminal() => format!("{:#}\n", self.json),
            Format::Json => format!("{}\n", self.json),
        };
        write_out(text.as_bytes())
    }
}

/// Writes to standard output. A reader that went away (`| head`) is the end of the command, not an
/// error.
pub fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        outcome => Ok(outcome?),
    }
}

/// Columns of the terminal on standard output; `None` when it is not a terminal.
pub fn terminal_width() -> Option<usize> {
    let terminal = console::Term::stdout();
    terminal.is_term().then(|| usize::from(terminal.size().1).max(40))
}

pub fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// A question before something is destroyed. Without a terminal to ask on, `--yes` is the answer.
pub fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!("{question} Add --yes to confirm")));
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(Failure::failed("nothing was done")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_moves_no_cursor_and_a_pipe_gets_it_whole() {
        let view = View::line("a\x1b[2J\nb", Value::Null);
        assert_eq!(view.render(Some(80), false), "a\\u{1b}[2J\nb\n");
        assert_eq!(view.render(None, false), "a\x1b[2J\nb\n");
    }
}

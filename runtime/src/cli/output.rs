//! What a command prints: tables for people, JSON for programs, from one [`View`].

use std::io::{IsTerminal, Write};

use clap::ValueEnum;
use serde_json::Value;

use super::failure::Failure;
use super::table::Table;

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

    /// As text for a terminal of this width, or for a pipe (`None`), where nothing is cut.
    pub fn render(&self, width: Option<usize>, colours: bool) -> String {
        let mut text = String::new();
        for block in &self.blocks {
            match block {
                Block::Table(table) => text.push_str(&table.render(width, colours)),
                Block::Line(line) => {
                    text.push_str(line);
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

//! Shows a view again and again: in place on a terminal, one after the other elsewhere.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::failure::{Failure, Kind};
use super::output::{Format, View, colours, terminal_width};
use crate::config::units;

/// `--watch` and its pace.
#[derive(Debug, Clone, clap::Args)]
pub struct Watch {
    /// Show it again and again until Ctrl-C
    #[arg(long, short = 'w')]
    watch: bool,
    /// Time between two looks
    #[arg(long, default_value = "1s", value_parser = interval, value_name = "DURATION", requires = "watch")]
    interval: Duration,
}

/// Time between two looks, as it is given.
pub fn interval(text: &str) -> Result<Duration, String> {
    let interval = units::parse_duration(text)?;
    if interval < Duration::from_millis(100) {
        return Err("at least 100ms".to_owned());
    }
    Ok(interval)
}

impl Watch {
    /// Until Ctrl-C, and not once.
    pub fn goes_on(&self) -> bool {
        self.watch
    }

    /// Shows what `look` finds, once or for ever. While watching, a node that does not answer is
    /// shown as such and asked again: a restart is just what one wants to watch.
    pub async fn show<F: Future<Output = Result<View, Failure>>>(
        &self,
        format: Format,
        mut look: impl FnMut() -> F,
    ) -> Result<(), Failure> {
        if !self.watch {
            return look().await?.print(format);
        }
        let mut screen = Screen { format, lines: 0 };
        // One listener for the whole time, so that a Ctrl-C during a look is not lost.
        let mut interrupt = signal(SignalKind::interrupt())?;
        loop {
            let looked = tokio::select! {
                looked = look() => looked,
                _ = interrupt.recv() => return Ok(()),
            };
            match looked {
                Ok(view) => screen.show(&view)?,
                Err(failure) if failure.kind == Kind::Unreachable => screen.trouble(&failure)?,
                Err(failure) => return Err(failure),
            }
            tokio::select! {
                () = tokio::time::sleep(self.interval) => {}
                _ = interrupt.recv() => return Ok(()),
            }
        }
    }
}

struct Screen {
    format: Format,
    /// Lines of the last view that are still on the terminal.
    lines: usize,
}

impl Screen {
    fn show(&mut self, view: &View) -> Result<(), Failure> {
        let width = terminal_width().filter(|_| self.format == Format::Table);
        let Some(width) = width else { return view.print(self.format) };
        self.replace(&view.render(Some(width), colours()))
    }

    fn trouble(&mut self, failure: &Failure) -> Result<(), Failure> {
        match terminal_width().filter(|_| self.format == Format::Table) {
            Some(_) => self.replace(&format!("{failure}\n")),
            None => {
                eprintln!("{failure}");
                Ok(())
            }
        }
    }

    fn replace(&mut self, text: &str) -> Result<(), Failure> {
        let terminal = console::Term::stdout();
        // Beyond the height of the terminal lines scroll away and cannot be taken back.
        let (height, width) = terminal.size();
        let rows = usize::from(height).saturating_sub(1).max(1);
        terminal.clear_last_lines(self.lines)?;
        let cut = |line| console::truncate_str(line, width.into(), "…");
        let shown: Vec<_> = text.lines().take(rows).map(cut).collect();
        terminal.write_str(&format!("{}\n", shown.join("\n")))?;
        self.lines = shown.len();
        Ok(())
    }
}

//! `tidemill completion`: words for a shell's Tab key.

use clap::CommandFactory;
use clap_complete::Shell;

use super::output::write_out;
use super::{Cli, Outcome};

const EXAMPLES: &str = "\
Examples:
  tidemill completion bash > /etc/bash_completion.d/tidemill
  tidemill completion zsh > \"${fpath[1]}/_tidemill\"
  tidemill completion fish > ~/.config/fish/completions/tidemill.fish";

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Completion {
    shell: Shell,
}

impl Completion {
    pub fn run(self) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "tidemill", &mut script);
        write_out(&script)
    }
}

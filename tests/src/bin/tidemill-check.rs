//! Judges the evidence of one fault run: `tidemill-check DIRECTORY`.
//!
//! Exit code 0: everything held. 1: something did not. 2: the run proves nothing, or cannot be read.

use std::path::PathBuf;
use std::process::ExitCode;

use tidemill_tests::check::check;
use tidemill_tests::evidence::Evidence;

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1) else {
        eprintln!("usage: tidemill-check DIRECTORY");
        return ExitCode::from(2);
    };
    let verdict = match Evidence::open(&PathBuf::from(directory)).and_then(|evidence| check(&evidence)) {
        Ok(verdict) => verdict,
        Err(error) => {
            println!("invalid: {error:#}");
            return ExitCode::from(2);
        }
    };
    for note in &verdict.notes {
        println!("note: {note}");
    }
    for violation in &verdict.violations {
        println!("violation: {violation}");
    }
    for reason in &verdict.invalid {
        println!("invalid: {reason}");
    }
    match (verdict.violations.is_empty(), verdict.invalid.is_empty()) {
        (true, true) => ExitCode::SUCCESS,
        (false, _) => ExitCode::from(1),
        (true, false) => ExitCode::from(2),
    }
}

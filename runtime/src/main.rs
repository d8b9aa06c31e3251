//! The one binary: everything is in [`tidemill::cli`].

fn main() -> std::process::ExitCode {
    tidemill::cli::main()
}

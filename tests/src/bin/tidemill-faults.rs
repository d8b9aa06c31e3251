//! `tidemill` with its crash points and planted bugs (see `tidemill::faults`). Never for users.

fn main() -> std::process::ExitCode {
    tidemill::cli::main()
}

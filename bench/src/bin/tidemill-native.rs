//! `tidemill` whose handler is linked into it (see `tidemill_bench::linked`). Never for users.

fn main() -> std::process::ExitCode {
    tidemill::node::native::run_with(tidemill_bench::linked::handler);
    tidemill::cli::main()
}

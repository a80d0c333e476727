//! The `nodewall` program.

fn main() -> std::process::ExitCode {
    nodewall::cli::main()
}

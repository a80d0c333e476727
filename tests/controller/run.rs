//! The binary: once, or as a process that is ended with what holds it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::api::Api;
use super::lab::daemon::PATIENCE;

/// Waits until something holds, and says how long that took.
#[track_caller]
pub fn until(what: &str, wanted: impl Fn() -> bool) -> Duration {
    within(PATIENCE, what, wanted)
}

/// The same, for so long at most.
#[track_caller]
pub fn within(patience: Duration, what: &str, wanted: impl Fn() -> bool) -> Duration {
    let start = Instant::now();
    while !wanted() {
        assert!(start.elapsed() < patience, "{what} did not come within {patience:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    start.elapsed()
}

/// `nodewall join` as a node, with its files in a folder.
pub fn join(api: &Api, node: &str, folder: &Path, more: &[&str]) -> Command {
    std::fs::write(folder.join("token"), format!("{}\n", super::api::TOKEN)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_nodewall"));
    command.args(["--node", node, "join", "--server", &api.url, "--kubeconfig"]).arg(folder.join("kubeconfig"));
    command.arg("--token-file").arg(folder.join("token")).args(more);
    command
}

/// Exit code and all that was printed.
pub fn ended(command: &mut Command) -> (i32, String) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout) + &text(&output.stderr))
}

/// `nodewall controller`, killed with this.
pub struct Controller(Child);

impl Controller {
    /// With this token.
    pub fn start(api: &Api, token: &str) -> Self {
        let log = std::fs::File::create(api.as_ref().join(format!("{token}.log"))).unwrap();
        let command = &mut Command::new(env!("CARGO_BIN_EXE_nodewall"));
        command.args(["controller", "--kubeconfig"]).arg(api.kubeconfig(token)).stdin(Stdio::null());
        Self(command.env_remove("JOURNAL_STREAM").env("NO_COLOR", "1").stderr(log).spawn().unwrap())
    }

    /// Kills it as a host that loses power does.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }

    /// Ends it as an administrator does; its exit code.
    pub fn end(mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.0.wait().unwrap().code()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a controller logged.
pub fn log(api: &Api, token: &str) -> String {
    std::fs::read_to_string(api.as_ref().join(format!("{token}.log"))).unwrap()
}

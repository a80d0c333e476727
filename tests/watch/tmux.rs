//! A terminal multiplexer of a test's own, with one pane in which a shell runs.

use std::process::Command;
use std::time::Instant;

use super::stand_in::PATIENCE;

/// The server; it is gone with this.
#[derive(Debug)]
pub(crate) struct Tmux {
    folder: tempfile::TempDir,
}

/// What the shell's prompt is.
const PROMPT: &str = "ready>";

impl Tmux {
    /// A pane of so many columns and lines, in which TERM is `term`; `None` where there is no tmux, which is said. CI skips nothing.
    pub(crate) fn new(test: &str, (width, height): (u16, u16), term: &str) -> Option<Self> {
        if let Err(error) = Command::new("tmux").arg("-V").output() {
            assert!(std::env::var_os("CI").is_none(), "tmux: {error}");
            println!("SKIPPED {test}: tmux: {error}");
            return None;
        }
        let tmux = Self { folder: tempfile::tempdir().unwrap() };
        let settings = "set -g status off\nset -g escape-time 0\n";
        std::fs::write(tmux.folder.path().join("tmux.conf"), settings).unwrap();
        let (width, height) = (width.to_string(), height.to_string());
        let shell = format!("env -i TERM={term} LANG=C.UTF-8 PATH=/usr/bin:/bin PS1='{PROMPT}' sh");
        tmux.run(&["new-session", "-d", "-x", &width, "-y", &height, &shell]);
        tmux.until("the shell", |text| text.contains(PROMPT));
        Some(tmux)
    }

    /// What a command of tmux prints.
    #[track_caller]
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux")
            .args(["-L", "test", "-f"])
            .arg(self.folder.path().join("tmux.conf"))
            .args(arguments)
            .env("TMUX_TMPDIR", self.folder.path())
            .env("LANG", "C.UTF-8")
            .env_remove("TMUX")
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Types a line into the shell.
    pub(crate) fn line(&self, text: &str) {
        self.run(&["send-keys", "-l", text]);
        self.keys(&["Enter"]);
    }

    /// Presses keys.
    pub(crate) fn keys(&self, keys: &[&str]) {
        self.run(&[&["send-keys"], keys].concat());
    }

    /// What is on the pane.
    pub(crate) fn text(&self) -> String {
        self.run(&["capture-pane", "-p"])
    }

    /// A word that tmux knows about the pane: "#{alternate_on}".
    pub(crate) fn word(&self, format: &str) -> String {
        self.run(&["display-message", "-p", format]).trim().to_owned()
    }

    /// Waits until the pane is as wanted.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let text = self.text();
            if wanted(&text) {
                return text;
            }
            assert!(start.elapsed() < PATIENCE, "{what} did not come:\n{text}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// Waits for the shell after a command that printed how it ended, and makes sure that the terminal is as it was.
    #[track_caller]
    pub(crate) fn sane_after(&self, ended: &str) {
        let text = self.until(ended, |text| text.contains(ended));
        assert!(text.contains(PROMPT) && !text.contains("nodewall top  "), "the screen is not as before:\n{text}");
        assert_eq!(self.word("#{alternate_on} #{cursor_flag}"), "0 1");
        self.line(
            "clear; stty -a | tr ' ' '\\n' | grep -xE -- '-?(icanon|echo|isig|icrnl|opost);?' | tr '\\n' ' '; echo e''nd",
        );
        let text = self.until("the mode", |text| text.contains("end\n"));
        let modes: Vec<&str> = text.lines().find(|line| line.ends_with("end")).unwrap().split(' ').collect();
        assert_eq!(modes.len(), 6, "{text}");
        assert!(modes.iter().all(|mode| !mode.starts_with('-')), "{text}");
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let server = ["-L", "test", "kill-server"];
        // It may be gone with its last pane.
        let _ = Command::new("tmux").args(server).env("TMUX_TMPDIR", self.folder.path()).env_remove("TMUX").output();
    }
}

//! What a command prints.

use crate::{ANSWER_WAIT, ProviderError, list};
use rustix::process::{Pid, Signal, kill_process_group};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How often it is looked whether a command has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How much of what a failed command said is told.
const SAID_CHARS_MAX: usize = 200;

/// A command and all that it started, which end with this.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.0.try_wait() {
            return;
        }
        if let Some(pid) = Pid::from_raw(self.0.id().cast_signed()) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

/// Runs a command; what it printed. It has ten seconds.
pub(crate) fn run(command: &str) -> Result<String, ProviderError> {
    let mut sh = Command::new("sh");
    sh.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut group = Group(sh.spawn().map_err(ProviderError::Run)?);
    let (out, err) = (group.0.stdout.take(), group.0.stderr.take());
    // Each on a thread: a full pipe would stop the command. They end with it.
    let printed = std::thread::spawn(move || out.map_or(Ok(None), list::bounded));
    let said = std::thread::spawn(move || err.map_or(Ok(None), list::bounded));
    let until = Instant::now() + ANSWER_WAIT;
    let status = loop {
        match group.0.try_wait().map_err(ProviderError::Run)? {
            Some(status) => break status,
            None if Instant::now() >= until => return Err(ProviderError::Late),
            None => {}
        }
        std::thread::sleep(LOOK_EVERY);
    };
    let text = |thread: std::thread::JoinHandle<std::io::Result<Option<String>>>| {
        thread.join().unwrap_or(Ok(None)).map_err(ProviderError::Run)
    };
    let printed = text(printed)?;
    if !status.success() {
        let said = text(said)?.unwrap_or_default();
        let said = said.trim().chars().take(SAID_CHARS_MAX).collect();
        return Err(ProviderError::Command { status: status.to_string(), said });
    }
    printed.ok_or(ProviderError::TooLong)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_heard_and_a_failure_told() {
        assert_eq!(run("echo 10.0.0.1; echo 10.0.0.2").unwrap(), "10.0.0.1\n10.0.0.2\n");
        let failed = run("echo nobody home >&2; exit 3").unwrap_err().to_string();
        assert!(failed.contains("exit status: 3") && failed.contains("nobody home"), "{failed}");
        assert!(run("/no/such/program").unwrap_err().to_string().contains("not found"));
        assert!(matches!(
            run("head -c 2000000 /dev/zero"),
            Err(ProviderError::TooLong | ProviderError::Command { .. })
        ));
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_all_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let hang = format!("sleep 600 & echo $! > {}; wait", pid.display());
        assert!(matches!(run(&hang), Err(ProviderError::Late)));
        let pid: i32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        let alive = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        let until = Instant::now() + Duration::from_secs(10);
        while alive() {
            assert!(Instant::now() < until, "it still runs");
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

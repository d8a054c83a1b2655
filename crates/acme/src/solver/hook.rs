//! A program that sets TXT records where we cannot: `HOOK present|cleanup NAME VALUE`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::time::timeout;

use super::{Challenge, Solver, SolverError};
use crate::problem::cleaned;

/// Answers dns-01 by a program, called as `HOOK present NAME VALUE` and `HOOK cleanup NAME VALUE`.
///
/// NAME is `_acme-challenge.DOMAIN` without a dot at its end, VALUE the TXT record. Two values at
/// one name may be wanted at once. The program ends when every name server of the domain answers
/// with the record; status 0 means that. No shell, an empty standard input, an environment of
/// `PATH`, `LC_ALL`, `TZ` and `HOME`; killed with all that it started when its time is over.
#[derive(Clone, Debug)]
pub struct Hook {
    program: PathBuf,
    limit: Duration,
}

/// Why a hook did not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HookError {
    /// It ended with another status than 0.
    #[error("the hook {} ended with {status}: {said}", program.display())]
    Failed {
        /// Which.
        program: PathBuf,
        /// How.
        status: std::process::ExitStatus,
        /// The end of what it said on standard error.
        said: String,
    },
    /// No absolute path.
    #[error("the hook \"{}\" has to be an absolute path", .0.display())]
    NotAbsolute(PathBuf),
    /// It could not be started.
    #[error("the hook {} cannot be run", program.display())]
    NotRun {
        /// Which.
        program: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It took too long.
    #[error("the hook {} did not end within {} s", program.display(), limit.as_secs_f64())]
    TooSlow {
        /// Which.
        program: PathBuf,
        /// How long it had.
        limit: Duration,
    },
}

impl Hook {
    /// A program, and how long one call of it may take.
    ///
    /// # Errors
    ///
    /// [`HookError::NotAbsolute`].
    pub fn new(program: &Path, limit: Duration) -> Result<Self, HookError> {
        if program.is_absolute() {
            Ok(Self { program: program.to_owned(), limit })
        } else {
            Err(HookError::NotAbsolute(program.to_owned()))
        }
    }

    async fn call(&self, verb: &str, challenge: &Challenge) -> Result<(), HookError> {
        let program = self.program.clone();
        let mut command = Command::new(&program);
        command.args([verb, &challenge.dns_name(), &challenge.dns_value()]);
        command.env_clear().env("PATH", PATH).env("LC_ALL", "C").env("TZ", "UTC");
        if let Some(home) = std::env::var_os("HOME") {
            command.env("HOME", home);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| HookError::NotRun { program: program.clone(), error })?;
        let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
        let stderr = child.stderr.take();
        let ended = async { tokio::join!(last_words(stderr), child.wait()) };
        let Ok((said, status)) = timeout(self.limit, ended).await else {
            return Err(HookError::TooSlow { program, limit: self.limit });
        };
        // It is gone, and its number may become another's.
        group.0 = None;
        let status = status.map_err(|error| HookError::NotRun { program: program.clone(), error })?;
        if status.success() { Ok(()) } else { Err(HookError::Failed { program, status, said }) }
    }
}

#[async_trait]
impl Solver for Hook {
    async fn present(&self, challenge: &Challenge) -> Result<(), SolverError> {
        Ok(self.call("present", challenge).await?)
    }

    async fn withdraw(&self, challenge: &Challenge) -> Result<(), SolverError> {
        Ok(self.call("cleanup", challenge).await?)
    }
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin";

/// How much of what a hook says is kept while it runs.
const KEPT: usize = 16 * 1024;

/// The processes of a hook for which nobody waits any more.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Those that ended meanwhile are no loss.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Reads to the end, whatever it is, and keeps a line of the end.
async fn last_words(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut kept = Vec::new();
    let mut buffer = vec![0; KEPT];
    if let Some(mut stream) = stream {
        // A pipe that breaks has been closed.
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            kept.extend_from_slice(&buffer[..count]);
            kept.drain(..kept.len().saturating_sub(KEPT));
        }
    }
    let text = String::from_utf8_lossy(&kept);
    let last = text.trim_end().char_indices().rev().nth(299).map_or(0, |(at, _)| at);
    cleaned(&text[last..], 300)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Instant;

    use super::*;
    use crate::order::ChallengeKind;

    fn hook(directory: &Path, script: &str) -> Hook {
        let path = directory.join("hook");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("changed");
        Hook::new(&path, Duration::from_millis(500)).expect("a hook")
    }

    fn challenge() -> Challenge {
        Challenge::new("*.example.org".parse().expect("a name"), ChallengeKind::Dns01, "token", "thumb")
    }

    async fn present(directory: &Path, script: &str) -> Result<(), HookError> {
        hook(directory, script).call("present", &challenge()).await
    }

    #[tokio::test]
    async fn a_hook_gets_three_words_and_little_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let out = directory.path().join("out");
        let script =
            format!("echo $# \"$1\" \"$2\" \"$3\" > {out}; env | sort >> {out}; cat >> {out}", out = out.display());
        hook(directory.path(), &script).withdraw(&challenge()).await.expect("run");
        let said = std::fs::read_to_string(&out).expect("an output");
        let first = format!("3 cleanup _acme-challenge.example.org {}", challenge().dns_value());
        assert_eq!(said.lines().next(), Some(first.as_str()));
        let names: Vec<_> = said.lines().skip(1).filter_map(|line| line.split('=').next()).collect();
        assert!(
            names.iter().all(|name| ["HOME", "LC_ALL", "PATH", "PWD", "TZ", "_", "SHLVL"].contains(name)),
            "{said}"
        );
    }

    #[tokio::test]
    async fn a_hook_that_fails_says_why() {
        let directory = tempfile::tempdir().expect("a directory");
        let error =
            present(directory.path(), "head -c 1000000 /dev/zero >&2; echo; echo 'no such zone' >&2; exit 3").await;
        let told = error.expect_err("failed").to_string();
        assert!(told.contains("exit status: 3") && told.ends_with("no such zone") && told.len() < 500, "{told}");
        let missing = Hook::new(Path::new("/nowhere/hook"), Duration::from_secs(1)).expect("a hook");
        assert!(matches!(missing.call("present", &challenge()).await, Err(HookError::NotRun { .. })));
        assert!(matches!(Hook::new(Path::new("hook"), Duration::ZERO), Err(HookError::NotAbsolute(_))));
    }

    #[tokio::test]
    async fn a_hook_that_hangs_ends_with_its_children() {
        let directory = tempfile::tempdir().expect("a directory");
        let pid = directory.path().join("pid");
        let began = Instant::now();
        let script = format!("sleep 100 & echo $! > {}; sleep 100", pid.display());
        assert!(matches!(present(directory.path(), &script).await, Err(HookError::TooSlow { .. })));
        assert!(began.elapsed() < Duration::from_secs(5));
        let child = std::fs::read_to_string(&pid).expect("a pid").trim().to_owned();
        for _ in 0..100 {
            let status = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            if status.is_empty() || status.contains(") Z ") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("process {child} still runs");
    }
}

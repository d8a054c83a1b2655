//! The programs around a panel: certbot, nginx, systemd.
//!
//! Each is a command line of the settings; arguments are appended one by one
//! and no shell sees them. They get a clean environment, a limit of time, and
//! their output is read up to a bound.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::str::FromStr;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::Command;
use tokio::sync::Mutex;

/// A program and its first arguments.
///
/// ```
/// use panel::CommandLine;
/// let command: CommandLine = "/usr/sbin/nginx -t".parse()?;
/// assert_eq!(command.to_string(), "/usr/sbin/nginx -t");
/// assert!("nginx -t".parse::<CommandLine>().is_err(), "the path is not searched");
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CommandLine {
    program: PathBuf,
    arguments: Vec<String>,
}

impl FromStr for CommandLine {
    type Err = String;

    /// Splits at blanks. The program's path must be absolute.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let program = words.next().filter(|program| program.starts_with('/'));
        let program = program.ok_or("use the absolute path of a program, and arguments after it")?;
        Ok(Self { program: program.into(), arguments: words.map(str::to_owned).collect() })
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.program.display())?;
        self.arguments.iter().try_for_each(|argument| write!(f, " {argument}"))
    }
}

/// Which programs there are.
#[derive(Debug)]
pub struct Programs {
    certbot: CommandLine,
    letsencrypt: PathBuf,
    nginx: Option<(CommandLine, CommandLine)>,
    systemctl: CommandLine,
    renewal: Duration,
    /// certbot locks its directory: a second one would only fail.
    renewing: Mutex<()>,
}

/// What nginx said to a change.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Nginx {
    /// It has loaded the new files, or there is none.
    Reloaded,
    /// It was not asked: its configuration has an error.
    TestFailed,
    /// It could not be told.
    ReloadFailed,
}

/// What a program left.
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// How long certbot may take to list certificates.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long nginx and systemd may take for a word: somebody waits for more than it.
const WORD: Duration = Duration::from_secs(10);
/// Octets of each stream that are kept; the rest is read and dropped.
const KEPT: usize = 256 * 1024;

impl Programs {
    /// With the paths that distributions use, and 90 s for a renewal.
    #[must_use]
    pub fn new() -> Self {
        let line = |program: &str, arguments: &[&str]| CommandLine {
            program: program.into(),
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
        };
        Self {
            certbot: line("/usr/bin/certbot", &[]),
            letsencrypt: "/etc/letsencrypt".into(),
            nginx: Some((line("/usr/sbin/nginx", &["-t"]), line("/usr/bin/systemctl", &["reload", "nginx"]))),
            systemctl: line("/usr/bin/systemctl", &[]),
            renewal: Duration::from_secs(90),
            renewing: Mutex::new(()),
        }
    }

    /// How certbot is called, where it keeps certificates, and how long it may
    /// take to renew one.
    #[must_use]
    pub fn certbot(mut self, command: CommandLine, letsencrypt: PathBuf, renewal: Duration) -> Self {
        (self.certbot, self.letsencrypt, self.renewal) = (command, letsencrypt, renewal);
        self
    }

    /// How nginx is tested and told; `None` if there is none.
    #[must_use]
    pub fn nginx(mut self, test_and_reload: Option<(CommandLine, CommandLine)>) -> Self {
        self.nginx = test_and_reload;
        self
    }

    /// How systemd is asked.
    #[must_use]
    pub fn systemctl(mut self, command: CommandLine) -> Self {
        self.systemctl = command;
        self
    }

    /// Where certbot keeps its files.
    pub(crate) fn letsencrypt(&self) -> &Path {
        &self.letsencrypt
    }

    /// Tests nginx' configuration and has it loaded. A failure is logged.
    ///
    /// A test that lacks rights, as every one of a server that is not root, says nothing of
    /// the configuration. nginx itself tests that at the reload.
    pub async fn reload_nginx(&self) -> Nginx {
        let Some((test, reload)) = &self.nginx else { return Nginx::Reloaded };
        match run(test, &[], WORD).await {
            Ok(output) if output.status.success() => {}
            Ok(output) if lacks_rights(&output.stderr) => {
                tracing::debug!(command = %test, "the test lacks rights: nginx' configuration is tested at the reload");
            }
            failed => {
                not_reloaded(test, &failed);
                return Nginx::TestFailed;
            }
        }
        match run(reload, &[], WORD).await {
            Ok(output) if output.status.success() => Nginx::Reloaded,
            failed => {
                not_reloaded(reload, &failed);
                Nginx::ReloadFailed
            }
        }
    }

    /// certbot's own listing.
    pub(crate) async fn list(&self) -> io::Result<Output> {
        run(&self.certbot, &["certificates", "--non-interactive"], PATIENCE).await
    }

    /// Renews a certificate, whether or not it is time.
    pub(crate) async fn renew(&self, name: &str) -> io::Result<Output> {
        let _alone = self.renewing.lock().await;
        // Without a terminal certbot sleeps for minutes first, as is right for timers.
        let how = ["--force-renewal", "--no-random-sleep-on-renew", "--non-interactive"];
        let arguments = [&["renew", "--cert-name", name][..], &how].concat();
        run(&self.certbot, &arguments, self.renewal).await
    }

    /// Asks systemd.
    pub(crate) async fn systemctl_says(&self, arguments: &[&str]) -> io::Result<Output> {
        run(&self.systemctl, arguments, WORD).await
    }
}

fn not_reloaded(command: &CommandLine, failed: &io::Result<Output>) {
    match failed {
        Ok(output) => {
            tracing::warn!(%command, status = %output.status, stderr = excerpt(&output.stderr), "nginx is not reloaded");
        }
        Err(error) => {
            tracing::warn!(%command, error = error as &dyn std::error::Error, "nginx is not reloaded");
        }
    }
}

/// Did nginx end its test for want of rights, and for nothing else? It reads keys, opens logs and
/// binds ports as when it starts, and the first of these that fails ends it.
fn lacks_rights(stderr: &str) -> bool {
    const REASONS: [&str; 3] = ["Permission denied", "Operation not permitted", "Read-only file system"];
    let mut ends = stderr.lines().filter(|line| line.contains("[emerg]")).peekable();
    ends.peek().is_some() && ends.all(|line| REASONS.iter().any(|reason| line.contains(reason)))
}

impl Default for Programs {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs a program to its end, or to the end of `patience`: then it is killed
/// with all that it started.
async fn run(command: &CommandLine, arguments: &[&str], patience: Duration) -> io::Result<Output> {
    let mut child = Command::new(&command.program)
        .args(&command.arguments)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin")
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let finished = async {
        let (stdout, stderr, status) = tokio::join!(kept(stdout), kept(stderr), child.wait());
        Ok(Output { status: status?, stdout, stderr })
    };
    let Ok(output) = tokio::time::timeout(patience, finished).await else {
        let patience = patience.as_secs_f64();
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{command} did not end within {patience} s")));
    };
    // It is gone, and its number may become another's.
    group.0 = None;
    output
}

/// The processes of a program that nobody waits for any more.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Those that ended meanwhile are no loss.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Reads to the end and keeps the beginning.
async fn kept(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut kept = Vec::new();
    if let Some(mut stream) = stream {
        // What a program says before its pipe breaks is as good as any.
        let _ = (&mut stream).take(KEPT as u64).read_to_end(&mut kept).await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&kept).into_owned()
}

/// What a program said, for a person: one line of at most 500 characters, the
/// end rather than the beginning, without control characters, and without
/// paths of keys or long runs of letters and digits that may be secrets.
pub(crate) fn excerpt(text: &str) -> String {
    const LIMIT: usize = 500;
    let is_secret = |word: &str| {
        let word = word.trim_matches(|character: char| !character.is_alphanumeric());
        let word = word.to_ascii_lowercase();
        ["private", "privkey", ".key", "key.json", "key.pem"].iter().any(|part| word.contains(part))
            || word
                .split(|character: char| !character.is_ascii_alphanumeric() && !"+_-".contains(character))
                .any(|run| run.len() >= 40)
    };
    let mut words: Vec<&str> = Vec::new();
    let mut length = 0;
    // Programs speak English here (LC_ALL=C); what is not ASCII may turn a line around.
    let text: String = text.chars().map(|character| if character.is_ascii() { character } else { '?' }).collect();
    for word in text.split(|character: char| character.is_whitespace() || character.is_control()).rev() {
        let word = if is_secret(word) { "[...]" } else { word };
        if word.is_empty() {
            continue;
        }
        length += word.chars().count() + 1;
        if length > LIMIT {
            break;
        }
        words.push(word);
    }
    words.reverse();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_one_harmless_line() {
        let noise = "\u{1b}[31mred\u{1b}[0m\nline /etc/letsencrypt/live/a/privkey.pem, key=/x/ca.key \u{7}bell\r\n";
        let told = excerpt(noise);
        assert!(
            !told.contains('\n') && !told.contains('\u{1b}') && !told.contains("privkey") && !told.contains("ca.key"),
            "{told}"
        );
        assert!(told.ends_with("bell"), "{told}");
        assert!(excerpt(&"word ".repeat(10_000)).chars().count() <= 500);
        assert_eq!(
            excerpt("accounts/x/private_key.json -----BEGIN PRIVATE KEY-----"),
            "[...] -----BEGIN [...] KEY-----"
        );
        assert_eq!(excerpt("turned\u{202e}around"), "turned?around");
        assert_eq!(excerpt(&"a".repeat(64)), "[...]");
        assert_eq!(excerpt(&format!("token={}", "a1".repeat(32))), "[...]");
    }

    #[tokio::test]
    async fn a_program_that_hangs_ends_with_its_children() {
        let directory = tempfile::tempdir().expect("a directory");
        let pid = directory.path().join("pid");
        let script = directory.path().join("hang");
        std::fs::write(&script, format!("sleep 100 &\necho $! > {}\nsleep 100\n", pid.display())).expect("written");
        let command: CommandLine = format!("/bin/sh {}", script.display()).parse().expect("a command");
        let error = run(&command, &[], Duration::from_millis(300)).await.err().expect("timed out");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let child = std::fs::read_to_string(&pid).expect("a pid").trim().to_owned();
        let is_gone = || {
            let status = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            status.is_empty() || status.contains(") Z ")
        };
        for _ in 0..100 {
            if is_gone() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the child {child} is still there");
    }

    #[tokio::test]
    async fn a_test_of_nginx_that_lacks_rights_leaves_it_to_the_reload() {
        const ALERT: &str = "nginx: [alert] could not open error log file: open() \"/var/log/nginx/error.log\" \
                             failed (13: Permission denied)";
        const KEY: &str = "2026/11/30 00:00:00 [emerg] 7#7: cannot load certificate key \"/etc/x.key\": BIO_new_file() \
                           failed (SSL: error:8000000D:system library::Permission denied:calling fopen(/etc/x.key, r))";
        const PID: &str = "nginx: [emerg] open() \"/run/nginx.pid\" failed (30: Read-only file system)";
        const PORT: &str = "nginx: [emerg] bind() to 0.0.0.0:80 failed (13: Permission denied)";
        const WRONG: &str = "nginx: [emerg] unknown directive \"listen\" in /etc/nginx/nginx.conf:3";
        const FAILED: &str = "nginx: configuration file /etc/nginx/nginx.conf test failed";
        let directory = tempfile::tempdir().expect("a directory");
        for (at, (said, is_reloaded, expected)) in [
            (&[ALERT, KEY, FAILED][..], true, Nginx::Reloaded),
            (&[PID, FAILED], true, Nginx::Reloaded),
            (&[PORT, FAILED], true, Nginx::Reloaded),
            (&[ALERT, KEY, FAILED], false, Nginx::ReloadFailed),
            (&[ALERT, WRONG, FAILED], true, Nginx::TestFailed),
            (&[PORT, WRONG], true, Nginx::TestFailed),
            (&[ALERT], true, Nginx::TestFailed),
            (&[], true, Nginx::TestFailed),
        ]
        .into_iter()
        .enumerate()
        {
            let said_by = directory.path().join(format!("{at}.said"));
            std::fs::write(&said_by, said.join("\n")).expect("written");
            let script = directory.path().join(format!("{at}.sh"));
            std::fs::write(&script, format!("cat {} >&2; exit 1\n", said_by.display())).expect("written");
            let test = format!("/bin/sh {}", script.display()).parse().expect("a command");
            let reload = if is_reloaded { "/bin/true" } else { "/bin/false" }.parse().expect("a command");
            let programs = Programs::new().nginx(Some((test, reload)));
            assert_eq!(programs.reload_nginx().await, expected, "{said:?}");
        }
    }

    #[tokio::test]
    async fn much_output_is_read_and_not_kept() {
        let command: CommandLine = "/usr/bin/head -c 3000000 /dev/zero".parse().expect("a command");
        let output = run(&command, &[], PATIENCE).await.expect("it ends");
        assert!(output.status.success());
        assert_eq!(output.stdout.len(), KEPT);
    }
}

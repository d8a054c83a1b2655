//! Callers who leave, and kills, at every moment of a change: what is done has
//! its effects, and what is not done has none.

use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::http::{Bounds, Peer, router};
use crate::programs::CommandLine;

/// A world with an nginx and a certbot that write down that they were called.
pub(super) struct Host {
    pub(super) prepared: Prepared,
    programs: PathBuf,
}

impl Host {
    pub(super) fn new(prepared: &Prepared) -> Self {
        let world = prepared.world.copy();
        let programs = world.directory.path().join("programs");
        fs::create_dir_all(programs.join("letsencrypt/renewal")).expect("made");
        fs::write(programs.join("letsencrypt/renewal/a.example.test.conf"), "").expect("written");
        for name in ["nginx", "certbot"] {
            let script = format!("echo called >> {}", programs.join(name).with_extension("called").display());
            fs::write(programs.join(name), script).expect("written");
        }
        let Prepared { token, admin, agent, .. } = prepared;
        let prepared = Prepared { world, token: token.clone(), admin: admin.clone(), agent: agent.clone() };
        Self { prepared, programs }
    }

    pub(super) fn world(&self) -> &World {
        &self.prepared.world
    }

    async fn open(&self, step: Step) -> Panel {
        self.open_at(Arc::new(now), step).await
    }

    pub(super) async fn open_at(&self, clock: Clock, step: Step) -> Panel {
        let command = |text: String| text.parse::<CommandLine>().expect("a command");
        let script = |name: &str| command(format!("/bin/sh {}", self.programs.join(name).display()));
        let programs = Programs::new().nginx(Some((command("/bin/true".to_owned()), script("nginx")))).certbot(
            script("certbot"),
            self.programs.join("letsencrypt"),
            Duration::from_secs(10),
        );
        self.world().open_with(clock, step, programs).await
    }

    pub(super) fn calls(&self, name: &str) -> usize {
        let called = fs::read_to_string(self.programs.join(name).with_extension("called"));
        called.unwrap_or_default().lines().count()
    }

    /// Until nginx has been told of all that is done.
    pub(super) async fn settled(&self, panel: &Panel) {
        self.world().settled(panel).await;
    }

    fn is_rotated(&self) -> bool {
        self.world().admin_serial() != self.prepared.admin
    }

    /// The old certificate fetches the new bundle if there is one, and nothing else.
    async fn assert_grace(&self, panel: &Panel, when: &str) {
        let old = presented("admin", &self.prepared.admin);
        let is_bound = panel.admin_auth_mode() == Ok(AdminAuthMode::HardwareBound);
        let (asked, fetched) = (panel.authenticate(Some(&old), false), panel.authenticate(Some(&old), true));
        assert_eq!(asked.is_ok(), !self.is_rotated(), "{when}: the old certificate");
        assert_eq!(fetched.is_ok(), !is_bound, "{when}: its grace");
        // It may have ended the grace of the one before, which takes a moment.
        self.settled(panel).await;
    }
}

#[tokio::test]
async fn a_rotation_that_is_killed_at_any_step_keeps_its_grace_and_is_told_to_nginx() {
    let prepared = prepared().await;
    for operation in [Operation::Rotate, Operation::UpgradeAdmin] {
        let mut was = BTreeSet::new();
        for steps in 0.. {
            let host = Host::new(&prepared);
            let (counting, opened) = dies_after(usize::MAX);
            drop(host.open(counting).await);
            let (step, taken) = dies_after(opened.load(Ordering::SeqCst) + steps);
            let panel = host.open(step).await;
            let answer = host.prepared.run(operation, &panel).await;
            drop(panel);
            let when = format!("{operation:?} killed after {steps} steps");
            let panel = host.open(files::go_on()).await;
            host.settled(&panel).await;
            host.assert_grace(&panel, &when).await;
            assert!(!host.is_rotated() || host.calls("nginx") > 0, "{when}: nginx knows");
            was.insert(host.is_rotated());
            if taken.load(Ordering::SeqCst) <= opened.load(Ordering::SeqCst) + steps {
                assert!(answer.is_ok(), "{when}: {answer:?}");
                break;
            }
        }
        assert_eq!(was.len(), 2, "{operation:?} was seen done and not done");
    }
}

#[tokio::test]
async fn a_reset_that_nginx_was_not_told_of_is_made_up_for() {
    let host = Host::new(&prepared().await);
    setup::reset_admin(&host.world().pki(), &host.world().config(), MAKING, now()).await.expect("reset");
    host.settled(&host.open(files::go_on()).await).await;
    assert_eq!(host.calls("nginx"), 1);
    setup::reset_admin(&host.world().pki(), &host.world().config(), MAKING, now()).await.expect("reset");
    setup::nginx_was_told(&host.world().pki()).expect("told");
    host.settled(&host.open(files::go_on()).await).await;
    assert_eq!(host.calls("nginx"), 1, "once is enough");
}

/// Every route that changes something: its method and path, who calls, and the body.
fn mutations(prepared: &Prepared) -> Vec<(&'static str, &'static str, Presented, Value)> {
    let admin = presented("admin", &prepared.admin);
    let agent = presented("agent:old", &prepared.agent);
    vec![
        ("POST", "/api/certs/a.example.test/renew", admin.clone(), Value::Null),
        ("POST", "/api/certs/mtls/rotate", admin.clone(), Value::Null),
        ("POST", "/api/certs/agent", admin.clone(), json!({"label": "second"})),
        ("POST", "/api/certs/agent/enroll", admin.clone(), json!({"label": "third"})),
        ("POST", "/api/certs/agent/upgrade-cert", agent, json!({"csr": csr()})),
        ("POST", "/api/certs/admin/upgrade-to-hardware-bound", admin.clone(), json!({"csr": csr()})),
        ("POST", "/api/enroll", admin.clone(), json!({"token": prepared.token, "csr": csr()})),
        (
            "PATCH",
            "/api/certs/agent/old/capabilities",
            admin.clone(),
            json!({"capabilities": ["tunnels:read", "sites:read"]}),
        ),
        ("PATCH", "/api/certs/agent/old/allowed-sites", admin.clone(), json!({"allowedSites": ["one"]})),
        ("DELETE", "/api/certs/agent/old", admin.clone(), Value::Null),
        ("DELETE", "/api/certs/agent/enroll/new", admin, Value::Null),
    ]
}

/// When a caller leaves, who has been served for a while.
#[derive(Clone, Copy, Debug)]
enum Leaves {
    /// While what it waits for is under way.
    Waiting,
    /// When that is done and it has not heard.
    BeforeItHears,
}

/// Polls a future so many times; `None` if it was not done by then.
async fn leave_after<F: Future>(polls: usize, leaves: Leaves, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match (future.as_mut().poll(context), leaves) {
            (Poll::Ready(output), _) => Poll::Ready(Some(output)),
            (Poll::Pending, Leaves::Waiting) if left == 0 => Poll::Ready(None),
            (Poll::Pending, _) => Poll::Pending,
        }
    })
    .await
}

#[tokio::test]
async fn what_a_caller_who_left_has_begun_is_done_with_its_effects_or_not_at_all() {
    let prepared = prepared().await;
    for at in 0..mutations(&prepared).len() {
        for leaves in [Leaves::Waiting, Leaves::BeforeItHears] {
            for polls in 0.. {
                assert!(polls < 100, "it takes too long");
                let host = Host::new(&prepared);
                let panel = Arc::new(host.open(files::go_on()).await);
                let routes: Router = router(Arc::clone(&panel), Bounds::default());
                let (method, path, caller, body) = mutations(&prepared).swap_remove(at);
                let address = ([127, 0, 0, 1], 1).into();
                let request = Request::builder()
                    .method(method)
                    .uri(path)
                    .header("host", "127.0.0.1:9292")
                    .header("content-type", "application/json")
                    .extension(Peer { address, presented: Some(Arc::new(caller)), is_proxy: false })
                    .body(if body.is_null() { Body::empty() } else { Body::from(body.to_string()) })
                    .expect("a request");
                let answer = leave_after(polls, leaves, routes.oneshot(request)).await;
                let when = format!("{method} {path}, left after {polls} polls, {leaves:?}");
                host.settled(&panel).await;

                // What this process knows is what the next one will read.
                let told = format!("{:?} {:?}", panel.agents(), panel.config());
                host.assert_grace(&panel, &when).await;
                drop(panel);
                let panel = host.open(files::go_on()).await;
                assert_eq!(told, format!("{:?} {:?}", panel.agents(), panel.config()), "{when}");
                host.settled(&panel).await;
                host.assert_grace(&panel, &when).await;
                assert!(!host.is_rotated() || host.calls("nginx") > 0, "{when}: nginx knows");
                assert!(host.calls("certbot") == 0 || host.calls("nginx") > 0, "{when}: nginx knows");
                drop(panel);
                host.world().assert_consistent(&when).await;
                if let Some(answer) = answer {
                    let answer = answer.expect("routers do not fail");
                    assert_eq!(answer.status(), 200, "{when}");
                    break;
                }
            }
        }
    }
}

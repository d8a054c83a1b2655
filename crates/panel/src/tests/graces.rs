//! What a proxy may know of a rotation, and when: it refuses whomever `crl.pem` names.

use std::sync::Mutex;
use std::time::Duration;

use super::departures::Host;
use super::*;

/// A clock that is set by hand.
#[derive(Clone)]
struct Watch(Arc<Mutex<Timestamp>>);

impl Watch {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(now())))
    }

    fn clock(&self) -> Clock {
        let watch = self.clone();
        Arc::new(move || *watch.0.lock().expect("a time"))
    }

    fn forward(&self, minutes: i64) {
        *self.0.lock().expect("a time") += SignedDuration::from_mins(minutes);
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..1000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come");
}

/// A host whose admin has just rotated and whose nginx was told of that; the old serial number.
async fn rotated(watch: &Watch) -> (Host, Panel, Serial) {
    let host = Host::new(&prepared().await);
    let panel = host.open_at(watch.clock(), files::go_on()).await;
    let old = host.prepared.admin.clone();
    panel.rotate(old.clone()).await.expect("rotated");
    host.settled(&panel).await;
    assert_eq!(panel.authenticate(Some(&presented("admin", &old)), false), Err(Denied::Revoked), "at once");
    assert!(panel.authenticate(Some(&presented("admin", &old)), true).is_ok(), "its grace");
    assert!(!host.world().lists(&old), "nor does the proxy refuse it");
    (host, panel, old)
}

#[tokio::test]
async fn the_list_names_what_was_superseded_when_the_new_certificate_comes() {
    let (host, panel, old) = rotated(&Watch::new()).await;
    let calls = host.calls("nginx");
    // A revocation meanwhile is one at once.
    panel.revoke("old".to_owned(), somebody()).await.expect("revoked");
    assert!(host.world().lists(&host.prepared.agent) && !host.world().lists(&old));
    assert!(admits_admin(&panel, &host.world().admin_serial()));
    until("the entry", || host.world().lists(&old)).await;
    host.settled(&panel).await;
    until("the word to nginx", || host.calls("nginx") == calls + 1).await;
    assert_eq!(panel.authenticate(Some(&presented("admin", &old)), true), Err(Denied::Revoked));
}

#[tokio::test]
async fn the_list_names_what_was_superseded_after_ten_minutes() {
    let watch = Watch::new();
    let (host, panel, old) = rotated(&watch).await;
    let calls = host.calls("nginx");
    watch.forward(9);
    panel.graces.look();
    panel.renew_crl().await;
    assert!(!host.world().lists(&old), "nine minutes");
    watch.forward(1);
    panel.graces.look();
    until("the entry", || host.world().lists(&old)).await;
    host.settled(&panel).await;
    until("the word to nginx", || host.calls("nginx") == calls + 1).await;
    assert!(!host.world().pki().join(".grace.json").exists());
}

#[tokio::test]
async fn nginx_hears_of_a_renewed_list_long_before_its_copy_runs_out() {
    let watch = Watch::new();
    let host = Host::new(&prepared().await);
    let path = host.world().pki().join(".nginx-crl");
    let told = || fs::read(&path).ok();
    let _ = fs::remove_file(&path);
    let panel = host.open_at(watch.clock(), files::go_on()).await;
    until("the word to nginx", || host.calls("nginx") > 0).await;
    host.settled(&panel).await;
    for (minutes, is_due) in [(29 * DAY, false), (DAY, true), (29 * DAY, false), (DAY, true)] {
        let before = (told(), host.calls("nginx"));
        watch.forward(minutes);
        panel.renew_crl().await;
        host.settled(&panel).await;
        assert_eq!(told() != before.0, is_due);
        if is_due {
            until("the word to nginx", || host.calls("nginx") > before.1).await;
        }
    }
    // A start is no reason of its own.
    let before = told();
    drop(panel);
    host.settled(&host.open_at(watch.clock(), files::go_on()).await).await;
    assert_eq!(told(), before);
    // Where no proxy has a copy there is nothing to tell.
    let mut host = Host::new(&host.prepared);
    host.prepared.world.is_proxied = false;
    let _ = fs::remove_file(host.world().pki().join(".nginx-crl"));
    host.settled(&host.open_at(watch.clock(), files::go_on()).await).await;
    assert!(!host.world().pki().join(".nginx-crl").exists());
}

/// In minutes.
const DAY: i64 = 24 * 60;

#[tokio::test]
async fn a_grace_that_ended_while_nobody_ran_is_ended_at_the_start() {
    let watch = Watch::new();
    let (host, panel, old) = rotated(&watch).await;
    drop(panel);
    watch.forward(10);
    let panel = host.open_at(watch.clock(), files::go_on()).await;
    until("the entry", || host.world().lists(&old)).await;
    host.settled(&panel).await;
}

#[tokio::test]
async fn whatever_takes_the_place_of_a_rotation_ends_its_grace() {
    for next in ["rotation", "upgrade", "reset"] {
        let (host, panel, old) = rotated(&Watch::new()).await;
        let second = host.world().admin_serial();
        match next {
            // By an admin whose certificate is not in the directory.
            "rotation" => drop(panel.rotate(somebody()).await.expect("rotated")),
            "upgrade" => drop(panel.upgrade_admin(csr(), somebody()).await.expect("upgraded")),
            _ => {
                let (pki, config) = (host.world().pki(), host.world().config());
                drop(setup::reset_admin(&pki, &config, MAKING, now()).await.expect("reset"));
            }
        }
        assert!(host.world().lists(&old), "{next}: the first");
        assert_eq!(host.world().lists(&second), next != "rotation", "{next}: the second, which is in grace itself");
    }
}

#[tokio::test]
async fn without_a_proxy_the_list_names_all_at_once() {
    let world = World { is_proxied: false, ..World::new() };
    let panel = world.open().await;
    let old = world.admin_serial();
    panel.rotate(old.clone()).await.expect("rotated");
    assert!(world.lists(&old));
    assert!(panel.authenticate(Some(&presented("admin", &old)), true).is_ok(), "its grace");
}

#[tokio::test]
async fn what_was_revoked_before_a_rotation_has_no_grace() {
    let world = World::new();
    let panel = world.open().await;
    let lost = world.admin_serial();
    // By another program: the admin has lost the bundle, and asks with another certificate.
    let entry = serde_json::json!({"revoked": [{"serial": lost.to_string(), "label": "lost"}]});
    fs::write(world.pki().join("revoked.json"), entry.to_string()).expect("written");
    panel.rotate(somebody()).await.expect("rotated");
    assert!(world.lists(&lost), "the list names it at once");
    assert_eq!(panel.authenticate(Some(&presented("admin", &lost)), true), Err(Denied::Revoked));
    assert!(panel.authenticate(Some(&presented("admin", &somebody())), true).is_ok(), "who asked has one");
}

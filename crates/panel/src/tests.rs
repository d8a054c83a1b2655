//! The use cases on a real directory: killed at every step, and all at once.

mod departures;
mod graces;
mod groups;
mod requests;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ca_dir::KeyAlgorithm;
use jiff::{SignedDuration, Timestamp};
use pki_core::crypto::Signer as _;
use pki_core::crypto::aws_lc::PrivateKey;
use pki_core::pkcs12::{self, Encryption};
use pki_core::{Certificate, RevocationList, certificates_from_pem, revocation_lists_from_file};
use store::{ClientCertificates, MemoryStore};
use tempfile::TempDir;

use crate::files::{self, Step};
use crate::identity::{Caller, Denied, Presented};
use crate::panel::{Panel, Parts, Unready};
use crate::programs::Programs;
use crate::state::{AdminAuthMode, Grant, Serial};
use crate::{Error, Making, setup};

const MAKING: Making = Making { keys: KeyAlgorithm::P256, encryption: Encryption::Legacy };

fn now() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().expect("a time")
}

type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// A directory with what the panel needs besides.
struct World {
    directory: TempDir,
    store: Arc<MemoryStore>,
    is_proxied: bool,
}

impl World {
    fn new() -> Self {
        let world =
            Self { directory: tempfile::tempdir().expect("a directory"), store: Arc::default(), is_proxied: true };
        let address = [127, 0, 0, 1].into();
        setup::ensure(&world.pki(), &world.config(), address, "example.test", MAKING, now()).expect("made");
        world
    }

    /// The same files in another place, with the same store.
    fn copy(&self) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        copy_tree(self.directory.path(), directory.path());
        Self { directory, store: Arc::clone(&self.store), is_proxied: self.is_proxied }
    }

    fn pki(&self) -> PathBuf {
        self.directory.path().join("pki")
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("panel.json")
    }

    async fn open_at(&self, at: Timestamp, step: Step) -> Panel {
        self.open_with(Arc::new(move || at), step, Programs::new().nginx(None)).await
    }

    /// Does `crl.pem` name it?
    fn lists(&self, serial: &Serial) -> bool {
        let pem = self.read("crl.pem");
        let der = revocation_lists_from_file(&pem).expect("a list").swap_remove(0);
        RevocationList::from_der(&der).expect("a list").is_revoked(&serial.octets())
    }

    async fn open_with(&self, clock: Clock, step: Step, programs: Programs) -> Panel {
        let parts = Parts {
            pki_dir: self.pki(),
            config: self.config(),
            store: Arc::clone(&self.store) as Arc<dyn ClientCertificates>,
            making: MAKING,
            capabilities: Vec::new(),
            programs,
            is_proxied: self.is_proxied,
            clock: Arc::new(move || store::Timestamp::from_micros(clock().as_microsecond())),
        };
        Panel::open_stepwise(parts, step).await.expect("a panel")
    }

    async fn open(&self) -> Panel {
        self.open_at(now(), files::go_on()).await
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.pki().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn admin_serial(&self) -> Serial {
        serial_of(&self.read("client.crt"))
    }

    /// Until nginx has been told of all that is done, and nobody writes.
    async fn settled(&self, panel: &Panel) {
        for _ in 0..1000 {
            panel.directory().change(|_| Ok((Vec::new(), ()))).await.expect("the writer lives");
            if !self.pki().join(".nginx-reload").exists() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("nginx was not told");
    }

    /// What must hold after every start, whatever came before.
    async fn assert_consistent(&self, when: &str) {
        let panel = self.open().await;
        let mode = panel.admin_auth_mode().expect("a mode");
        let pem = self.read("client.crt");
        let certificate = certificates_from_pem(&pem).expect("a certificate").swap_remove(0);
        match mode {
            AdminAuthMode::P12 => {
                let key = PrivateKey::from_pkcs8_pem(&self.read("client.key")).expect("a key");
                let spki = Certificate::from_der(&certificate).expect("a certificate").spki().to_vec();
                assert_eq!(key.spki(), spki, "{when}: client.key and client.crt");
                let password = String::from_utf8(self.read(".p12-password")).expect("text");
                let bundle = pkcs12::open(&self.read("client.p12"), &password);
                let bundle = bundle.unwrap_or_else(|error| panic!("{when}: .p12-password: {error}"));
                assert_eq!(bundle.certificates[0].der, certificate, "{when}: client.p12");
            }
            AdminAuthMode::HardwareBound => {
                for secret in ["client.key", "client.p12", ".p12-password", "client.key.bak", "client.p12.bak"] {
                    assert!(!self.pki().join(secret).exists(), "{when}: {secret} is left over");
                }
            }
        }
        assert!(admits_admin(&panel, &self.admin_serial()), "{when}: the admin of client.crt");
        if self.pki().join("client.crt.bak").exists() {
            let before = serial_of(&self.read("client.crt.bak"));
            assert!(!admits_admin(&panel, &before), "{when}: the admin of client.crt.bak");
        }
        let agents = panel.agents().expect("agents");
        let with_bundle: BTreeSet<_> = agents
            .iter()
            .filter(|agent| !agent.revoked && agent.enrollment_method == crate::EnrollmentMethod::P12)
            .map(|agent| agent.label.clone())
            .collect();
        let directories: BTreeSet<_> = fs::read_dir(self.pki().join("agents"))
            .expect("a directory")
            .map(|entry| entry.expect("an entry"))
            .filter(|entry| entry.path().is_dir())
            .map(|entry| entry.file_name().into_string().expect("text"))
            .collect();
        assert_eq!(with_bundle, directories, "{when}: bundles of agents");
        for agent in agents.iter().filter(|agent| agent.revoked) {
            assert!(!admits_agent(&panel, &agent.label, &agent.serial), "{when}: {} is revoked", agent.label);
        }
        self.settled(&panel).await;
        for left in files_below(self.directory.path()) {
            let name = left.display().to_string();
            assert!(
                !name.contains(".staging") && !name.contains(".intent") && !name.ends_with("adit-new"),
                "{when}: {name} is left over"
            );
        }
    }
}

fn presented(common_name: &str, serial: &Serial) -> Presented {
    Presented::from_headers("SUCCESS", &format!("CN={common_name},O=Portlama"), &serial.to_string()).expect("presented")
}

fn admits_admin(panel: &Panel, serial: &Serial) -> bool {
    panel.authenticate(Some(&presented("admin", serial)), false) == Ok(Caller::Admin(serial.clone()))
}

fn admits_agent(panel: &Panel, label: &str, serial: &Serial) -> bool {
    panel.authenticate(Some(&presented(&format!("agent:{label}"), serial)), false).is_ok()
}

fn serial_of(pem: &[u8]) -> Serial {
    let der = certificates_from_pem(pem).expect("a certificate").swap_remove(0);
    Serial::from_octets(Certificate::from_der(&der).expect("a certificate").serial())
}

/// An admin whose certificate is not in the directory.
fn somebody() -> Serial {
    Serial::from_octets(&[0x0a, 0xdb])
}

fn grant(label: &str) -> Grant {
    Grant { label: label.to_owned(), capabilities: vec!["tunnels:read".to_owned()], allowed_sites: Vec::new() }
}

fn csr() -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    rcgen::CertificateParams::default().serialize_request(&key).expect("a request").pem().expect("PEM")
}

fn copy_tree(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&to).expect("made");
            copy_tree(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copied");
        }
    }
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries
        .flat_map(|path| if path.is_dir() { [vec![path.clone()], files_below(&path)].concat() } else { vec![path] })
        .collect()
}

/// Goes on for so many steps and then never again, as after `kill -9`.
fn dies_after(steps: usize) -> (Step, Arc<AtomicUsize>) {
    let taken = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&taken);
    let step = move || {
        if counter.fetch_add(1, Ordering::SeqCst) < steps { Ok(()) } else { Err(io::Error::other("killed")) }
    };
    (Arc::new(step), taken)
}

/// What is done, and how to see that it was done.
#[derive(Clone, Copy, Debug)]
enum Operation {
    CreateAgent,
    CreateToken,
    Enroll,
    Revoke,
    Rotate,
    SetCapabilities,
    UpgradeAdmin,
    UpgradeAgent,
}

const OPERATIONS: [Operation; 8] = [
    Operation::CreateAgent,
    Operation::CreateToken,
    Operation::Enroll,
    Operation::Revoke,
    Operation::Rotate,
    Operation::SetCapabilities,
    Operation::UpgradeAdmin,
    Operation::UpgradeAgent,
];

/// A directory in which every operation can be done, and what they need.
struct Prepared {
    world: World,
    token: String,
    admin: Serial,
    agent: Serial,
}

async fn prepared() -> Prepared {
    let world = World::new();
    let panel = world.open().await;
    // A generation to be kept, and one agent with a bundle.
    panel.rotate(world.admin_serial()).await.expect("rotated");
    let agent = panel.create_agent(grant("old"), somebody()).await.expect("an agent").serial;
    let token = panel.create_token(grant("new"), somebody()).await.expect("a token").token.expose().to_owned();
    let admin = world.admin_serial();
    Prepared { world, token, admin, agent }
}

impl Prepared {
    /// Some serial number or other value that the operation answers.
    async fn run(&self, operation: Operation, panel: &Panel) -> Result<String, Error> {
        match operation {
            Operation::CreateAgent => {
                panel.create_agent(grant("second"), somebody()).await.map(|agent| agent.serial.to_string())
            }
            Operation::CreateToken => {
                panel.create_token(grant("third"), somebody()).await.map(|token| token.token.expose().to_owned())
            }
            Operation::Enroll => {
                panel.enroll(&self.token, csr()).await.map(|(_, certificate)| certificate.serial.to_string())
            }
            Operation::Revoke => panel.revoke("old".to_owned(), somebody()).await.map(|()| String::new()),
            Operation::Rotate => {
                panel.rotate(self.admin.clone()).await.map(|rotated| rotated.bundle.serial.to_string())
            }
            Operation::SetCapabilities => {
                let capabilities = vec!["tunnels:read".to_owned(), "sites:read".to_owned()];
                panel.set_capabilities("old".to_owned(), capabilities, somebody()).await.map(|()| String::new())
            }
            Operation::UpgradeAdmin => {
                panel.upgrade_admin(csr(), self.admin.clone()).await.map(|certificate| certificate.serial.to_string())
            }
            Operation::UpgradeAgent => {
                let caller = presented("agent:old", &self.agent);
                let Ok(Caller::Agent(caller)) = panel.authenticate(Some(&caller), false) else { panic!("an agent") };
                panel.upgrade_agent(caller, csr()).await.map(|certificate| certificate.serial.to_string())
            }
        }
    }

    /// Was it done? All of it, or nothing.
    async fn is_done(&self, operation: Operation, world: &World, answer: Option<&str>) -> bool {
        let panel = world.open().await;
        let agents = panel.agents().expect("agents");
        let active = |label: &str| agents.iter().find(|agent| agent.label == label && !agent.revoked);
        let is_answer = |serial: &Serial| answer.is_none_or(|answer| serial.to_string() == answer);
        match operation {
            Operation::CreateAgent => active("second").is_some_and(|agent| is_answer(&agent.serial)),
            Operation::CreateToken => {
                let refused = panel.create_token(grant("third"), somebody()).await;
                matches!(refused, Err(Error::TokenExists(_)))
            }
            Operation::Enroll => {
                let is_enrolled = active("new").is_some_and(|agent| is_answer(&agent.serial));
                // The token and the agent go together.
                let again = panel.enroll(&self.token, csr()).await;
                assert_eq!(again.is_err(), is_enrolled);
                if is_enrolled {
                    assert_eq!(again.err(), Some(Error::TokenUsed));
                }
                is_enrolled
            }
            Operation::Revoke => {
                let is_revoked = active("old").is_none();
                assert_eq!(admits_agent(&panel, "old", &self.agent), !is_revoked);
                is_revoked
            }
            Operation::Rotate | Operation::UpgradeAdmin => {
                let is_new = world.admin_serial() != self.admin && is_answer(&world.admin_serial());
                assert_eq!(admits_admin(&panel, &self.admin), !is_new, "the old certificate");
                let mode = panel.admin_auth_mode().expect("a mode");
                let is_bound = matches!(operation, Operation::UpgradeAdmin) && is_new;
                assert_eq!(mode == AdminAuthMode::HardwareBound, is_bound, "the mode");
                is_new
            }
            Operation::SetCapabilities => active("old").is_some_and(|agent| agent.capabilities.len() == 2),
            Operation::UpgradeAgent => {
                let agent = active("old").expect("the agent");
                let is_new = agent.serial != self.agent && is_answer(&agent.serial);
                assert_eq!(admits_agent(&panel, "old", &self.agent), !is_new, "the old certificate");
                is_new
            }
        }
    }
}

#[tokio::test]
async fn killed_at_any_step_it_is_done_or_not() {
    let prepared = prepared().await;
    for operation in OPERATIONS {
        let mut was = BTreeSet::new();
        for steps in 0.. {
            assert!(steps < 100, "{operation:?} takes too many steps");
            let world = prepared.world.copy();
            // Opening takes steps of its own.
            let (counting, opened) = dies_after(usize::MAX);
            drop(world.open_at(now(), counting).await);
            let (step, taken) = dies_after(opened.load(Ordering::SeqCst) + steps);
            let panel = world.open_at(now(), step).await;
            let answer = prepared.run(operation, &panel).await;
            drop(panel);
            let was_killed = taken.load(Ordering::SeqCst) > opened.load(Ordering::SeqCst) + steps;
            let when = format!("{operation:?} killed after {steps} steps");
            world.assert_consistent(&when).await;
            let is_done = prepared.is_done(operation, &world, answer.as_deref().ok()).await;
            if answer.is_ok() {
                assert!(is_done, "{when}: what was acknowledged holds");
            }
            world.assert_consistent(&when).await;
            was.insert(is_done);
            if !was_killed {
                assert!(answer.is_ok(), "{when}: {answer:?}");
                break;
            }
        }
        assert_eq!(was.len(), 2, "{operation:?} was seen done and not done");
    }
}

#[tokio::test]
async fn a_change_that_failed_is_made_up_for_without_a_restart() {
    let prepared = prepared().await;
    for steps in 0..40 {
        let world = prepared.world.copy();
        let (counting, opened) = dies_after(usize::MAX);
        drop(world.open_at(now(), counting).await);
        let at = opened.load(Ordering::SeqCst) + steps;
        // One step fails, as if the disk had been full for a moment.
        let taken = AtomicUsize::new(0);
        let step: Step =
            Arc::new(
                move || {
                    if taken.fetch_add(1, Ordering::SeqCst) == at { Err(io::Error::other("full")) } else { Ok(()) }
                },
            );
        let panel = world.open_at(now(), step).await;
        if prepared.run(Operation::Rotate, &panel).await.is_ok() && steps > 0 {
            // The step that fails lies behind it.
            break;
        }
        panel.create_agent(grant("after"), somebody()).await.unwrap_or_else(|error| panic!("step {steps}: {error:?}"));
        drop(panel);
        world.assert_consistent(&format!("step {steps} failed")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_have_one_token_one_enrolls() {
    let world = World::new();
    let panel = Arc::new(world.open().await);
    let token = panel.create_token(grant("one"), somebody()).await.expect("a token").token.expose().to_owned();
    let tries = (0..16).map(|_| {
        let (panel, token) = (Arc::clone(&panel), token.clone());
        tokio::spawn(async move { panel.enroll(&token, csr()).await.map(drop) })
    });
    let mut answers = Vec::new();
    for attempt in tries.collect::<Vec<_>>() {
        answers.push(attempt.await.expect("no panic"));
    }
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    for answer in answers.into_iter().filter_map(Result::err) {
        assert_eq!(answer, Error::TokenUsed);
    }
    assert_eq!(panel.agents().expect("agents").len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_come_one_after_the_other_and_one_upgrade_wins() {
    let world = World::new();
    let panel = Arc::new(world.open().await);
    let caller = world.admin_serial();
    let rotations = (0..8).map(|_| {
        let (panel, caller) = (Arc::clone(&panel), caller.clone());
        tokio::spawn(async move { panel.rotate(caller).await })
    });
    let mut passwords = BTreeSet::new();
    for rotation in rotations.collect::<Vec<_>>() {
        let rotated = rotation.await.expect("no panic").expect("rotated");
        passwords.insert(rotated.bundle.password.expose().to_owned());
    }
    assert_eq!(passwords.len(), 8);
    world.assert_consistent("after eight rotations").await;

    let caller = world.admin_serial();
    let upgrades = (0..2).map(|_| {
        let (panel, caller) = (Arc::clone(&panel), caller.clone());
        tokio::spawn(async move { panel.upgrade_admin(csr(), caller).await.map(drop) })
    });
    let mut answers = Vec::new();
    for upgrade in upgrades.collect::<Vec<_>>() {
        answers.push(upgrade.await.expect("no panic"));
    }
    answers.sort_by_key(Result::is_err);
    assert_eq!(answers, [Ok(()), Err(Error::AlreadyHardwareBound)]);
    world.assert_consistent("after the upgrade").await;
}

#[tokio::test]
async fn the_old_certificate_fetches_the_new_bundle_and_nothing_else() {
    let world = World::new();
    let panel = world.open().await;
    let old = world.admin_serial();
    panel.rotate(old.clone()).await.expect("rotated");
    let ask = |panel: &Panel, for_download| panel.authenticate(Some(&presented("admin", &old)), for_download);
    assert_eq!(ask(&panel, false), Err(Denied::Revoked));
    assert!(ask(&panel, true).is_ok());
    // A restart does not end it.
    drop(panel);
    let panel = world.open().await;
    assert!(ask(&panel, true).is_ok());
    // Ten minutes do.
    let later = world.open_at(now() + SignedDuration::from_mins(10), files::go_on()).await;
    assert_eq!(ask(&later, true), Err(Denied::Revoked));
    // A clock that was ahead does not make them more.
    let earlier = world.open_at(now() - SignedDuration::from_hours(400 * 24), files::go_on()).await;
    assert_eq!(ask(&earlier, true), Err(Denied::Revoked));
    // So does the new certificate, when it comes.
    assert!(admits_admin(&panel, &world.admin_serial()));
    assert_eq!(ask(&panel, true), Err(Denied::Revoked));
}

#[tokio::test]
async fn a_reset_beside_a_running_panel_is_noticed() {
    let world = World::new();
    let panel = world.open().await;
    let old = world.admin_serial();
    panel.upgrade_admin(csr(), old.clone()).await.expect("upgraded");
    let bound = world.admin_serial();
    assert!(admits_admin(&panel, &bound));
    setup::reset_admin(&world.pki(), &world.config(), MAKING, now()).await.expect("reset");
    assert!(!admits_admin(&panel, &bound) && !admits_admin(&panel, &old));
    assert!(admits_admin(&panel, &world.admin_serial()));
    assert_eq!(panel.admin_auth_mode(), Ok(AdminAuthMode::P12));
    world.assert_consistent("after the reset").await;
}

#[tokio::test]
async fn whoever_is_revoked_meanwhile_changes_nothing() {
    let world = World::new();
    let panel = world.open().await;
    let thief = world.admin_serial();
    setup::reset_admin(&world.pki(), &world.config(), MAKING, now()).await.expect("reset");
    let admin = world.admin_serial();
    let caller = thief.clone();
    assert_eq!(panel.rotate(caller.clone()).await.map(drop), Err(Error::Superseded));
    assert_eq!(panel.upgrade_admin(csr(), caller.clone()).await.map(drop), Err(Error::Superseded));
    assert_eq!(panel.create_agent(grant("one"), caller.clone()).await.map(drop), Err(Error::Superseded));
    assert_eq!(panel.create_token(grant("one"), caller).await.map(drop), Err(Error::Superseded));
    assert!(admits_admin(&panel, &admin), "the admin of the reset");
    // Rotations at once are another matter, until a reset ends them.
    panel.rotate(admin.clone()).await.expect("rotated");
    panel.rotate(admin.clone()).await.expect("rotated again, by who asked at the same time");
    setup::reset_admin(&world.pki(), &world.config(), MAKING, now()).await.expect("reset");
    assert_eq!(panel.rotate(admin).await.map(drop), Err(Error::Superseded));
    world.assert_consistent("after all").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_write_while_we_write_is_read() {
    let world = World::new();
    let panel = Arc::new(world.open().await);
    let agent = panel.create_agent(grant("one"), somebody()).await.expect("an agent").serial;
    panel.create_agent(grant("other"), somebody()).await.expect("an agent");
    let busy = {
        let panel = Arc::clone(&panel);
        tokio::spawn(async move {
            for round in 0..200 {
                let sites = vec![format!("site-{round}")];
                panel.set_allowed_sites("other".to_owned(), sites, somebody()).await.expect("changed");
            }
        })
    };
    let (list, beside) = (world.pki().join("revoked.json"), world.pki().join("revoked.other"));
    for _ in 0..20 {
        for revoked in [format!("{{\"revoked\":[{{\"serial\":\"{agent}\"}}]}}"), "{\"revoked\":[]}".to_owned()] {
            fs::write(&beside, &revoked).expect("written");
            fs::rename(&beside, &list).expect("moved");
            tokio::time::sleep(std::time::Duration::from_millis(3)).await;
            assert_eq!(admits_agent(&panel, "one", &agent), !revoked.contains("serial"), "{revoked}");
        }
    }
    busy.await.expect("no panic");
    assert!(admits_agent(&panel, "one", &agent));
}

#[tokio::test]
async fn a_label_that_others_wrote_is_no_path() {
    let world = World::new();
    let victim = world.directory.path().join("victim");
    fs::create_dir(&victim).expect("made");
    for label in [victim.to_str().expect("text"), "", "..", "../victim", "plugin-agent:a:../../victim"] {
        let token = serde_json::json!({"tokens": [{
            "token": "clear", "label": label, "createdAt": "2026-11-22T11:59:00.000Z",
            "expiresAt": "2026-11-22T12:09:00.000Z", "used": false,
        }]});
        fs::write(world.pki().join("enrollment-tokens.json"), token.to_string()).expect("written");
        let panel = world.open().await;
        assert_eq!(panel.enroll("clear", csr()).await.map(drop), Err(Error::InvalidLabel), "{label}");
        let agent = serde_json::json!({"agents": [{"label": label, "serial": "0A"}]});
        fs::write(world.pki().join("agents/registry.json"), agent.to_string()).expect("written");
        let Ok(Caller::Agent(caller)) =
            panel.authenticate(Some(&presented(&format!("agent:{label}"), &Serial::from_octets(&[10]))), false)
        else {
            panic!("{label} is in the registry")
        };
        assert_eq!(panel.upgrade_agent(caller, csr()).await.map(drop), Err(Error::InvalidLabel), "{label}");
        panel.revoke(label.to_owned(), somebody()).await.expect("revoked all the same");
        fs::remove_file(world.pki().join("agents/registry.json")).expect("it is there still");
        fs::remove_file(world.pki().join("revoked.json")).expect("it is there still");
    }
    assert!(victim.exists());
}

#[tokio::test]
async fn what_another_process_promised_is_finished_by_looking() {
    let world = World::new();
    let panel = world.open().await;
    fs::write(world.pki().join("agents/file"), "").expect("written");
    fs::write(world.pki().join(".intent"), r#"[{"remove":"agents/file"}]"#).expect("written");
    for _ in 0..200 {
        panel.agents().expect("agents");
        if !world.pki().join(".intent").exists() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(!world.pki().join("agents/file").exists());
}

#[tokio::test]
async fn a_record_that_leads_elsewhere_is_not_followed() {
    for path in ["/tmp/elsewhere", "../victim", "agents/../../victim"] {
        let world = World::new();
        fs::create_dir(world.directory.path().join("victim")).expect("made");
        let record = serde_json::json!([{"remove": path}]);
        fs::write(world.pki().join(".intent"), record.to_string()).expect("written");
        let opened = setup::ensure_server_certificate(&world.pki(), &world.config(), [127, 0, 0, 1].into(), now());
        assert!(opened.is_err(), "{path}");
        assert!(world.directory.path().join("victim").exists(), "{path}");
    }
}

#[tokio::test]
async fn the_log_of_a_broken_list_tells_nothing_of_it() {
    let world = World::new();
    for text in ["{\"tokens\":[\"SECRET\"]}", "{\"tokens\":\"SECRET\"}", "SECRET", "{\"revoked\":\"SECRET\"}"] {
        fs::write(world.pki().join("enrollment-tokens.json"), text).expect("written");
        let error = world.open().await.enroll("token", csr()).await.expect_err("refused");
        assert!(!format!("{error:?}").contains("SECRET"), "{error:?}");
    }
}

#[tokio::test]
async fn lists_of_the_wrong_shape_let_nobody_in_and_are_kept() {
    let world = World::new();
    let panel = world.open().await;
    let agent = panel.create_agent(grant("one"), somebody()).await.expect("an agent").serial;
    panel.create_agent(grant("two"), somebody()).await.expect("an agent");
    panel.revoke("two".to_owned(), somebody()).await.expect("revoked");
    let admin = world.admin_serial();
    for name in ["revoked.json", "agents/registry.json"] {
        let good = world.read(name);
        for bad in [
            "",
            "[]",
            "{}",
            "{\"revoked\":{}}",
            "{\"agents\":[1]}",
            "{\"agents\":[{\"label\":\"x\"}]}",
            "{\"revoked\":[{}]}",
        ] {
            fs::write(world.pki().join(name), bad).expect("written");
            assert!(!admits_agent(&panel, "one", &agent), "{name}: {bad}");
            assert_eq!(admits_admin(&panel, &admin), name != "revoked.json", "{name}: {bad}");
            assert!(panel.revoke("one".to_owned(), somebody()).await.is_err(), "{name}: {bad}");
            if name == "revoked.json" {
                let reset = setup::reset_admin(&world.pki(), &world.config(), MAKING, now()).await;
                assert!(reset.is_err(), "{name}: {bad}");
            }
            assert_eq!(world.read(name), bad.as_bytes(), "{name} is as it was");
            assert_eq!(world.admin_serial(), admin, "the admin is as it was");
        }
        fs::write(world.pki().join(name), good).expect("written");
        assert!(admits_agent(&panel, "one", &agent) && admits_admin(&panel, &admin), "{name} is mended");
    }
}

#[tokio::test]
async fn what_keeps_the_panel_from_answering_is_told() {
    let world = World::new();
    let panel = world.open().await;
    panel.check().await.expect("in order");
    for name in ["agents/registry.json", "revoked.json", "enrollment-tokens.json", "../panel.json"] {
        let path = world.pki().join(name);
        let before = fs::read(&path).ok();
        fs::write(&path, "[").expect("written");
        let Err(Unready::Directory(Error::Internal(cause))) = panel.check().await else {
            panic!("{name} is malformed")
        };
        assert!(cause.to_string().contains(path.file_name().expect("a name").to_str().expect("text")), "{cause}");
        match before {
            Some(content) => fs::write(&path, content).expect("written"),
            None => fs::remove_file(&path).expect("removed"),
        }
        panel.check().await.expect("mended");
    }
    let elsewhere = world.directory.path().join("elsewhere");
    fs::rename(world.pki(), &elsewhere).expect("moved");
    panel.check().await.expect_err("no directory is there");
    fs::rename(elsewhere, world.pki()).expect("moved back");
    panel.check().await.expect("in order again");
    world.assert_consistent("after the checks").await;
}

#[tokio::test]
async fn a_directory_without_agents_gets_one() {
    let world = World::new();
    fs::remove_dir(world.pki().join("agents")).expect("removed");
    let panel = world.open().await;
    panel.create_agent(grant("one"), somebody()).await.expect("an agent");
    fs::remove_dir_all(world.pki().join("agents")).expect("removed");
    let token = panel.create_token(grant("two"), somebody()).await.expect("a token");
    panel.enroll(token.token.expose(), csr()).await.expect("enrolled");
    assert_eq!(panel.agents().expect("agents").len(), 1, "what was removed is gone");
}

#[tokio::test]
async fn a_change_that_was_promised_is_made_in_another_place() {
    let prepared = prepared().await;
    let mut was_moved = false;
    for steps in 0..40 {
        let world = prepared.world.copy();
        let (counting, opened) = dies_after(usize::MAX);
        drop(world.open_at(now(), counting).await);
        let (step, _) = dies_after(opened.load(Ordering::SeqCst) + steps);
        let panel = world.open_at(now(), step).await;
        let _ = prepared.run(Operation::Rotate, &panel).await;
        drop(panel);
        // The directory is restored elsewhere.
        was_moved |= world.pki().join(".intent").exists();
        let moved = world.copy();
        drop(world);
        moved.assert_consistent(&format!("killed after {steps} steps and moved")).await;
    }
    assert!(was_moved);
}

#[tokio::test]
async fn tokens_end() {
    let world = World::new();
    let token = world.open().await.create_token(grant("one"), somebody()).await.expect("a token");
    let enroll = async |minutes| {
        let panel = world.open_at(now() + SignedDuration::from_mins(minutes), files::go_on()).await;
        panel.enroll(token.token.expose(), "no request".to_owned()).await.map(drop)
    };
    assert!(matches!(enroll(9).await, Err(Error::InvalidCsr(_))));
    assert_eq!(enroll(10).await, Err(Error::TokenExpired));
    assert_eq!(enroll(59).await, Err(Error::TokenExpired));
    assert_eq!(enroll(60).await, Err(Error::TokenUnknown));
    // The clock was ahead when it was made; a little is no reason.
    assert!(matches!(enroll(-1).await, Err(Error::InvalidCsr(_))));
    assert_eq!(enroll(-400 * 24 * 60).await, Err(Error::TokenExpired));
    let early = world.open_at(now() - SignedDuration::from_hours(400 * 24), files::go_on()).await;
    early.create_token(grant("one"), somebody()).await.expect("it keeps nobody from another one");
}

#[tokio::test]
async fn a_key_has_one_active_certificate() {
    let world = World::new();
    let panel = world.open().await;
    let request = csr();
    for (label, is_free) in [("one", true), ("two", false)] {
        let token = panel.create_token(grant(label), somebody()).await.expect("a token");
        let enrolled = panel.enroll(token.token.expose(), request.clone()).await;
        assert_eq!(enrolled.is_ok(), is_free, "{label}: {enrolled:?}");
        if !is_free {
            assert!(panel.enroll(token.token.expose(), csr()).await.is_ok(), "the token was not used");
        }
    }
    // A restart does not make it free, a revocation does.
    drop(panel);
    let panel = world.open().await;
    let token = panel.create_token(grant("three"), somebody()).await.expect("a token");
    assert!(panel.enroll(token.token.expose(), request.clone()).await.is_err());
    panel.revoke("one".to_owned(), somebody()).await.expect("revoked");
    assert!(panel.enroll(token.token.expose(), request).await.is_ok());
}

/// Whoever has seen a list takes no lower number after it (RFC 5280, 5.2.3).
#[tokio::test]
async fn the_number_of_the_revocation_list_never_falls() {
    let number = |world: &World| {
        let lists = revocation_lists_from_file(&world.read("crl.pem")).expect("a list");
        RevocationList::from_der(&lists[0]).ok().and_then(|list| list.number()).expect("a number")
    };
    let world = World::new();
    let mut numbers = Vec::new();
    for hours in [0, 0, -48, -24, 1] {
        drop(world.open_at(now() + SignedDuration::from_hours(hours), files::go_on()).await);
        numbers.push(number(&world));
    }
    assert!(numbers.is_sorted_by(|before, after| before < after), "{numbers:?}");
    fs::write(world.pki().join("crl.pem"), "no list").expect("written");
    drop(world.open_at(now() + SignedDuration::from_hours(2), files::go_on()).await);
    assert!(number(&world) > numbers[4], "one that cannot be read is no reason to have none");
}

#[tokio::test]
async fn an_authority_whose_time_is_over_is_said() {
    let world = World::new();
    assert!(world.open().await.check().await.is_ok());
    let panel = world.open_at(now() + SignedDuration::from_hours(24 * 366 * 40), files::go_on()).await;
    let told = panel.check().await.expect_err("over");
    assert_eq!(told.in_short(), "the panel's authority has expired");
}

#[tokio::test]
async fn a_change_of_the_configuration_that_was_promised_is_finished_by_whoever_comes_first() {
    let prepared = prepared().await;
    let mut was_promised = false;
    for steps in 0..40 {
        let world = prepared.world.copy();
        let (counting, opened) = dies_after(usize::MAX);
        drop(world.open_at(now(), counting).await);
        let (step, _) = dies_after(opened.load(Ordering::SeqCst) + steps);
        let panel = world.open_at(now(), step).await;
        let _ = prepared.run(Operation::UpgradeAdmin, &panel).await;
        drop(panel);
        was_promised |= world.pki().join(".intent").exists();
        // A start makes the port's certificate before it opens the panel.
        let address = [127, 0, 0, 1].into();
        setup::ensure_server_certificate(&world.pki(), &world.config(), address, now())
            .unwrap_or_else(|error| panic!("killed after {steps} steps: {error:?}"));
        world.assert_consistent(&format!("killed after {steps} steps")).await;
    }
    assert!(was_promised);
}

/// What others read is no reason to let somebody in.
#[tokio::test]
async fn a_list_that_cannot_be_read_keeps_nobody_from_being_revoked() {
    let world = World::new();
    let panel = world.open().await;
    let agent = panel.create_agent(grant("lap"), somebody()).await.expect("an agent").serial;
    let file = fs::File::create(world.pki().join("crl.pem")).expect("made");
    file.set_len(65 * 1024 * 1024).expect("too large to be read");
    panel.revoke("lap".to_owned(), somebody()).await.expect("revoked");
    assert!(!admits_agent(&panel, "lap", &agent));
    assert!(world.read("crl.pem").len() < 10_000, "it is made anew");
}

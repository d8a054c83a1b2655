//! Changes that wait for the writer share a commit.

use super::*;

async fn revoke_at_once(panel: &Arc<Panel>, labels: &[String]) -> Vec<Result<(), Error>> {
    let revoke = |label: String| {
        let panel = Arc::clone(panel);
        tokio::spawn(async move { panel.revoke(label, somebody()).await })
    };
    let revoking: Vec<_> = labels.iter().cloned().map(revoke).collect();
    let mut revoked = Vec::new();
    for task in revoking {
        revoked.push(task.await.expect("no panic"));
    }
    revoked
}

/// Lists are written whole: with thousands of agents it is the groups that make a fleet's
/// revocation a matter of seconds.
#[tokio::test]
async fn revocations_at_once_are_written_together() {
    let world = World::new();
    let panel = world.open().await;
    let labels: Vec<_> = (0..24).map(|number| format!("agent-{number}")).collect();
    for label in &labels {
        panel.create_agent(grant(label), somebody()).await.expect("an agent");
    }
    drop(panel);
    let (step, taken) = dies_after(usize::MAX);
    let panel = Arc::new(world.open_at(now(), step).await);
    let steps = async |labels: &[String]| {
        let before = taken.load(Ordering::SeqCst);
        let revoked = revoke_at_once(&panel, labels).await;
        assert!(revoked.iter().all(Result::is_ok), "{revoked:?}");
        taken.load(Ordering::SeqCst) - before
    };
    let one = steps(&labels[..1]).await;
    let many = steps(&labels[1..]).await;
    // Each removes a directory of its own, which is one step.
    assert!(many <= 4 * one + labels.len(), "{one} steps for one, {many} for {}", labels.len() - 1);
    drop(panel);
    world.assert_consistent("revoked at once").await;
}

#[tokio::test]
async fn of_a_group_that_is_killed_what_was_acknowledged_holds() {
    let before = World::new();
    let panel = before.open().await;
    let labels = ["one", "two", "three"].map(str::to_owned);
    for label in &labels {
        panel.create_agent(grant(label), somebody()).await.expect("an agent");
    }
    drop(panel);
    for steps in 0..200 {
        let world = before.copy();
        let (step, taken) = dies_after(usize::MAX);
        drop(world.open_at(now(), step).await);
        let opened = taken.load(Ordering::SeqCst);
        let (step, _) = dies_after(opened + steps);
        let panel = Arc::new(world.open_at(now(), step).await);
        let revoked = revoke_at_once(&panel, &labels).await;
        // A label that is free may be had again at once.
        let made = panel.create_agent(grant("one"), somebody()).await;
        drop(panel);
        world.assert_consistent(&format!("killed after {steps} steps")).await;
        let panel = world.open().await;
        for (label, revoked) in labels.iter().zip(&revoked) {
            let agents = panel.agents().expect("agents");
            let active = agents.iter().filter(|agent| agent.label == *label && !agent.revoked).count();
            match (revoked, &made, label.as_str()) {
                (Ok(()), Ok(_), "one") => assert_eq!(active, 1, "after {steps} steps"),
                (Ok(()), ..) => assert!(active == 0 || label == "one", "{label} after {steps} steps"),
                _ => {}
            }
        }
        if made.is_ok() {
            assert!(steps > 20, "nothing was killed");
            return;
        }
    }
    panic!("it takes too many steps");
}

#[tokio::test]
async fn a_change_that_panics_costs_its_group_only() {
    let world = World::new();
    let panel = world.open().await;
    let panicked = panel.directory().change(|_| -> Result<(Vec<_>, ()), Error> { panic!("as told") }).await;
    assert!(matches!(panicked, Err(Error::Internal(_))), "{panicked:?}");
    panel.create_agent(grant("after"), somebody()).await.expect("the writer lives");
}

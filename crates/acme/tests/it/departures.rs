//! Orders that are left at every moment, and go on in another process.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use acme::{AccountFile, Challenge, ChallengeKind, Client, Http01, Order, Solver, SolverError, Solvers, TlsAlpn};
use rustix::process::{Pid, Signal, kill_process};

use crate::liar::{Liar, Lie, csr};
use crate::orders::{self, names};
use crate::pebble::{Habits, Pebble};

/// Polls a future so many times; `None` if it was not done by then.
async fn leave_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// What was dropped withdraws its answers on a task of its own.
async fn is_withdrawn(shown: &TlsAlpn) -> bool {
    for _ in 0..500 {
        if shown.is_empty() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_left_at_any_moment_goes_on() {
    let Some(pebble) = Pebble::start(&Habits::default()).await else { return };
    let (names, solvers) = (names(&["a.example.test"]), pebble.solvers());
    let csr = orders::csr(&names);
    let mut polls = 0;
    loop {
        polls += 1;
        let account = pebble.client().account().await.expect("an account");
        let url = account.begin(&names, None).await.expect("an order");
        let order = Order { url: &url, names: &names, csr: &csr, failures: 0 };
        let first = leave_after(polls, account.proceed(&order, &solvers)).await;
        // Another process, which knows the URL and the request.
        let again = pebble.client().account().await.expect("an account");
        let second = again.proceed(&order, &solvers).await;
        let second = second.unwrap_or_else(|error| panic!("after {polls} polls: {error:?}"));
        if let Some(first) = first {
            assert_eq!(first.expect("a certificate"), second, "the one certificate of the order");
            break;
        }
    }
    println!("{polls} moments to leave at");
    assert!(is_withdrawn(&pebble.tls_alpn).await);
    assert!(polls > 5, "{polls}");
}

/// Left after one moment, then after two, and so on: each time a new process, until it is done.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_is_left_again_and_again_comes_to_an_end() {
    let Some(pebble) = Pebble::start(&Habits::default()).await else { return };
    let (names, solvers) = (names(&["a.example.test"]), pebble.solvers());
    let csr = orders::csr(&names);
    let url = pebble.client().account().await.expect("an account").begin(&names, None).await.expect("an order");
    let order = Order { url: &url, names: &names, csr: &csr, failures: 0 };
    for polls in 1.. {
        let account = pebble.client().account().await.expect("an account");
        match leave_after(polls, account.proceed(&order, &solvers)).await {
            None => assert!(polls < 500, "it never ends"),
            Some(result) => {
                result.unwrap_or_else(|error| panic!("after {polls} polls: {error:?}"));
                return;
            }
        }
    }
}

/// A certificate is made once, however often its order is left: the directory counts.
#[tokio::test]
async fn a_request_is_sent_once_if_it_arrives() {
    for polls in 1..200 {
        let liar = Liar::start(Lie::None).await;
        let shown = Http01::new();
        let solvers = Solvers::new().with(ChallengeKind::Http01, Arc::new(shown.clone()));
        let (names, csr) = (names(&["a.example.test"]), csr());
        let account = liar.client().account().await.expect("an account");
        let url = account.begin(&names, None).await.expect("an order");
        let order = Order { url: &url, names: &names, csr: &csr, failures: 0 };
        let first = leave_after(polls, account.proceed(&order, &solvers)).await;
        if first.is_none() {
            liar.client().account().await.expect("an account").proceed(&order, &solvers).await.expect("a certificate");
        }
        assert_eq!(liar.state.new_orders.lock().expect("no panic").len(), 1);
        let finalized = liar.state.finalized.load(Ordering::Relaxed);
        assert_eq!(finalized, 1, "after {polls} polls");
        if first.is_some() {
            return;
        }
    }
    panic!("it never ends");
}

/// Counts, and takes its time.
#[derive(Default)]
struct Slow {
    presented: AtomicU32,
    withdrawn: AtomicU32,
}

#[async_trait::async_trait]
impl Solver for Slow {
    async fn present(&self, _: &Challenge) -> Result<(), SolverError> {
        self.presented.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(2)).await;
        Ok(())
    }

    async fn withdraw(&self, _: &Challenge) -> Result<(), SolverError> {
        tokio::time::sleep(Duration::from_millis(2)).await;
        self.withdrawn.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// What has been presented is withdrawn, once, whenever somebody leaves: also in the middle of either.
#[tokio::test]
async fn what_is_presented_is_withdrawn() {
    for polls in 1..200 {
        let mut liar = Liar::start(Lie::None).await;
        liar.settings.limits.linger = Duration::from_millis(20);
        let slow = Arc::new(Slow::default());
        let solvers = Solvers::new().with(ChallengeKind::Http01, Arc::clone(&slow) as Arc<dyn Solver>);
        let (names, csr) = (names(&["a.example.test"]), csr());
        let account = liar.client().account().await.expect("an account");
        let url = account.begin(&names, None).await.expect("an order");
        let order = Order { url: &url, names: &names, csr: &csr, failures: 0 };
        let done = leave_after(polls, account.proceed(&order, &solvers)).await;
        tokio::time::sleep(Duration::from_millis(60)).await;
        let counted = [&slow.presented, &slow.withdrawn].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(counted[0], counted[1], "after {polls} polls");
        if done.is_some() {
            assert_eq!(counted[0], 1);
            return;
        }
    }
    panic!("it never ends");
}

/// An account that is made while somebody leaves is the one that is found afterwards.
#[tokio::test]
async fn an_account_that_is_left_half_made() {
    for polls in 1..200 {
        let liar = Liar::start(Lie::None).await;
        let client = liar.client();
        let first = leave_after(polls, client.account()).await;
        let again = client.account().await.expect("an account");
        assert_eq!(again.uri(), liar.client().account().await.expect("the same").uri());
        assert_eq!(liar.accounts(), 1, "after {polls} polls");
        if let Some(first) = first {
            assert_eq!(first.expect("an account").uri(), again.uri());
            return;
        }
    }
    panic!("it never ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_stops_for_a_while() {
    let Some(pebble) = Pebble::start(&Habits::default()).await else { return };
    let mut settings = pebble.settings();
    settings.limits.request = Duration::from_millis(300);
    settings.limits.patience = Duration::from_secs(30);
    let file = AccountFile::new(pebble.work.path().join("account.json"));
    let client = Client::new(settings, Arc::new(file)).expect("a client");
    let account = client.account().await.expect("an account");
    let names = names(&["a.example.test"]);
    let csr = orders::csr(&names);
    let url = account.begin(&names, None).await.expect("an order");
    let order = Order { url: &url, names: &names, csr: &csr, failures: 0 };
    let pid = Pid::from_raw(pebble.pebble.id().cast_signed()).expect("a process");
    kill_process(pid, Signal::STOP).expect("stopped");
    let goes_on = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        kill_process(pid, Signal::CONT).expect("continued");
    };
    let solvers = pebble.solvers();
    let (result, ()) = tokio::join!(account.proceed(&order, &solvers), goes_on);
    result.expect("a certificate");
}

/// Prints what many at once take, compared with one alone: `cargo test -p acme --test it -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: Pebble waits for seconds before it looks"]
async fn many_at_once() {
    let habits = Habits { sleeps: true, ..Habits::default() };
    let Some(pebble) = Pebble::start(&habits).await else { return };
    let account = pebble.client().account().await.expect("an account");
    let solvers = pebble.solvers();
    let one = |host: String| {
        let (account, solvers) = (account.clone(), solvers.clone());
        async move {
            let began = std::time::Instant::now();
            let names = names(&[&host]);
            let csr = orders::csr(&names);
            let url = account.begin(&names, None).await.expect("an order");
            let order = Order { url: &url, names: &names, csr: &csr, failures: 0 };
            account.proceed(&order, &solvers).await.expect("a certificate");
            began.elapsed()
        }
    };
    let mut alone = Duration::ZERO;
    for at in 0..4 {
        alone = alone.max(one(format!("alone-{at}.example.test")).await);
    }
    let began = std::time::Instant::now();
    let many: Vec<_> = (0..32).map(|at| tokio::spawn(one(format!("many-{at}.example.test")))).collect();
    let mut slowest = Duration::ZERO;
    for each in many {
        slowest = slowest.max(each.await.expect("no panic"));
    }
    println!("slowest of 4 alone: {alone:?}; 32 at once: {:?}, slowest of them {slowest:?}", began.elapsed());
}

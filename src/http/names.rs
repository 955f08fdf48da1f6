//! Names of hosts, looked up once for all connections that begin together.
//!
//! The system's way to look a name up blocks a thread for as long as it takes. A thousand connections that begin at a time, as at each start and
//! after each interruption, would be a thousand look-ups of the same name, each in a thread that waits for its turn.
//!
//! # Rules
//! - One look-up of a name at a time: whoever wants it meanwhile waits for the same answer. It goes on also when nobody waits any more. One that has
//!   no answer after [`STUCK`] is given up, and the next who asks begins another: the system's may wait for ever.
//! - An answer is good for [`KEPT`] from when it was asked for, so that a change of the name is seen as soon; a failure is not kept.
//! - A failure would be that of all who wait, and so many at a time look like an API that is gone: it is asked once more before it counts.
//! - Addresses are no names: they do not come here.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// So long an answer is good.
const KEPT: Duration = Duration::from_secs(5);

/// Longer than the usual resolver takes to give up (resolv.conf(5): three servers, twice five seconds each).
const STUCK: Duration = Duration::from_secs(40);

/// Before it is asked once more.
const AGAIN: Duration = Duration::from_millis(200);

type Answer = Result<Arc<[SocketAddr]>, Arc<io::Error>>;

/// The names that were looked up of late.
#[derive(Clone, Default)]
pub(super) struct Names(Arc<Mutex<HashMap<String, Asked>>>);

/// A look-up.
struct Asked {
    at: Instant,
    answer: Shared<BoxFuture<'static, Answer>>,
    task: AbortHandle,
}

impl Names {
    /// The addresses of this name, by a look-up that has begun, or `look_up` begins now.
    fn find<F>(&self, name: &str, now: Instant, look_up: impl FnOnce(String) -> F) -> Shared<BoxFuture<'static, Answer>>
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        // Nothing that holds the lock can panic half-way through a change.
        let mut asked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asked) = asked.get(name).filter(|asked| asked.is_good(now)) {
            return asked.answer.clone();
        }
        asked.retain(|_, asked| asked.is_good(now));
        let task = tokio::spawn(look_up(name.to_owned()));
        let handle = task.abort_handle();
        let answer = async move {
            let found = task.await.unwrap_or_else(|error| Err(io::Error::other(error)));
            found.map(Arc::from).map_err(Arc::new)
        };
        let answer = answer.boxed().shared();
        asked.insert(name.to_owned(), Asked { at: now, answer: answer.clone(), task: handle });
        answer
    }
}

impl Asked {
    fn is_good(&self, now: Instant) -> bool {
        let has_failed = self.answer.peek().is_some_and(Result::is_err);
        let good_for = if self.task.is_finished() { KEPT } else { STUCK };
        !has_failed && now < self.at + good_for
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let answer = self.find(name.as_str(), Instant::now(), async |name: String| {
            tracing::debug!("looking up the name of a host");
            let look_up = async || Ok(tokio::net::lookup_host((name.as_str(), 0)).await?.collect());
            match look_up().await {
                Err(_) => {
                    tokio::time::sleep(AGAIN).await;
                    look_up().await
                }
                found => found,
            }
        });
        Box::pin(async move {
            let addresses = answer.await?;
            Ok(Box::new((0..addresses.len()).filter_map(move |at| addresses.get(at).copied())) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    /// What is asked, in place of the system: it counts, and answers when it may.
    struct System {
        names: Names,
        asked: Arc<AtomicUsize>,
        may_answer: Arc<Semaphore>,
        fails: bool,
    }

    impl System {
        fn new() -> Self {
            let may_answer = Arc::new(Semaphore::new(0));
            Self { names: Names::default(), asked: Arc::default(), may_answer, fails: false }
        }

        fn find(&self, name: &str, at: Instant) -> Shared<BoxFuture<'static, Answer>> {
            let (asked, may_answer, fails) = (Arc::clone(&self.asked), Arc::clone(&self.may_answer), self.fails);
            self.names.find(name, at, async move |_| {
                let n = asked.fetch_add(1, Ordering::Relaxed) + 1;
                may_answer.acquire().await.map_err(io::Error::other)?.forget();
                let port = u16::try_from(n).map_err(io::Error::other)?;
                if fails { Err(io::Error::other("no such name")) } else { Ok(vec![([10, 0, 0, 1], port).into()]) }
            })
        }

        fn answer(&self, times: usize) {
            self.may_answer.add_permits(times);
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }
    }

    /// Which look-up it was that answered.
    async fn answered(answer: Shared<BoxFuture<'static, Answer>>) -> Result<u16, String> {
        answer.await.map(|addresses| addresses[0].port()).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_thousand_connections_that_begin_together_are_one_look_up_of_each_name() {
        let (system, now) = (System::new(), Instant::now());
        let waiting: Vec<_> = (0..1_000).map(|_| system.find("api", now)).collect();
        // However long it takes: a second one would be no faster.
        let others: Vec<_> = (0..1_000).map(|_| system.find("api", now + STUCK - Duration::from_millis(1))).collect();
        let of_another = system.find("login", now);
        system.answer(2);
        for answer in waiting.into_iter().chain(others) {
            assert_eq!(answered(answer).await, Ok(1));
        }
        assert_eq!(answered(of_another).await, Ok(2));
        assert_eq!(system.asked(), 2);
    }

    #[tokio::test]
    async fn a_look_up_without_an_answer_is_given_up_in_the_end() {
        let (system, now) = (System::new(), Instant::now());
        let stuck = system.find("api", now);
        let another = system.find("api", now + STUCK);
        system.answer(2);
        assert_eq!(system.asked(), 0, "none has begun");
        assert_eq!((answered(stuck).await, answered(another).await), (Ok(1), Ok(2)));
    }

    #[tokio::test]
    async fn an_answer_is_good_for_some_seconds_and_no_longer() {
        let (system, now) = (System::new(), Instant::now());
        system.answer(2);
        assert_eq!(answered(system.find("api", now)).await, Ok(1));
        assert_eq!(answered(system.find("api", now + KEPT - Duration::from_millis(1))).await, Ok(1));
        assert_eq!(answered(system.find("api", now + KEPT)).await, Ok(2));
        assert_eq!(system.asked(), 2);
    }

    #[tokio::test]
    async fn a_failure_is_told_to_all_who_wait_and_not_kept() {
        let (mut system, now) = (System::new(), Instant::now());
        system.fails = true;
        let waiting: Vec<_> = (0..10).map(|_| system.find("api", now)).collect();
        system.answer(1);
        for answer in waiting {
            assert_eq!(answered(answer).await, Err("no such name".to_owned()));
        }
        system.fails = false;
        system.answer(1);
        assert_eq!(answered(system.find("api", now)).await, Ok(2));
        assert_eq!(system.asked(), 2);
    }

    #[tokio::test]
    async fn a_look_up_for_which_nobody_waits_any_more_is_still_the_only_one() {
        let (system, now) = (System::new(), Instant::now());
        for _ in 0..100 {
            drop(system.find("api", now));
            tokio::task::yield_now().await;
        }
        system.answer(1);
        assert_eq!(answered(system.find("api", now)).await, Ok(1));
        assert_eq!(system.asked(), 1);
    }
}

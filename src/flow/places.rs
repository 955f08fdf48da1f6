//! A semaphore of which the number of places changes while they are taken.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Places to take, shared by all clones.
#[derive(Debug, Clone)]
pub struct Places {
    semaphore: Arc<Semaphore>,
    size: Arc<AtomicUsize>,
    /// Places that are taken and will not be there any more when they are given back.
    surplus: Arc<AtomicUsize>,
}

/// One or several places; given back when dropped.
#[derive(Debug)]
pub struct Taken {
    permit: OwnedSemaphorePermit,
    of: Places,
}

impl Places {
    pub(super) fn new(size: usize) -> Self {
        Self {
            semaphore: Arc::new(Semaphore::new(size)),
            size: Arc::new(AtomicUsize::new(size)),
            surplus: Arc::default(),
        }
    }

    /// Waits for so many places: first come, first served.
    ///
    /// # Cancel safety
    /// Who waits no longer loses its turn and nothing else.
    pub async fn take(&self, n: usize) -> Taken {
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        loop {
            let permit = match Arc::clone(&self.semaphore).acquire_many_owned(n).await {
                Ok(permit) => permit,
                // Nobody closes it.
                Err(_) => std::future::pending().await,
            };
            let taken = Taken { permit, of: self.clone() };
            // What somebody held who waited for more was not there to be struck when there came to be fewer; what is taken here is struck now.
            if self.surplus.load(Ordering::Acquire) == 0 {
                return taken;
            }
        }
    }

    /// As many places as are free, up to `most`; `None` if there is none.
    pub fn take_now(&self, most: usize) -> Option<Taken> {
        let n = self.semaphore.available_permits().min(most);
        let n = u32::try_from(n).ok().filter(|n| *n > 0)?;
        let permit = Arc::clone(&self.semaphore).try_acquire_many_owned(n).ok()?;
        Some(Taken { permit, of: self.clone() })
    }

    /// How many places there are.
    pub fn size(&self) -> usize {
        self.size.load(Ordering::Acquire)
    }

    /// How many are taken.
    pub fn taken(&self) -> usize {
        let all = self.size() + self.surplus.load(Ordering::Acquire);
        all.saturating_sub(self.semaphore.available_permits())
    }

    /// From now on there are so many. Those that are taken beyond that stay so until they are given back. One caller at a time.
    pub(super) fn resize(&self, size: usize) {
        let before = self.size.swap(size, Ordering::AcqRel);
        if size > before {
            let more = size - before;
            self.semaphore.add_permits(more - self.settle(more));
        } else {
            let fewer = before - size;
            self.surplus.fetch_add(fewer - self.semaphore.forget_permits(fewer), Ordering::AcqRel);
        }
    }

    /// Strikes up to `most` off the surplus; says how many.
    fn settle(&self, most: usize) -> usize {
        if most == 0 || self.surplus.load(Ordering::Acquire) == 0 {
            return 0;
        }
        let settled =
            self.surplus.fetch_update(Ordering::AcqRel, Ordering::Acquire, |surplus| Some(surplus - surplus.min(most)));
        settled.map_or(0, |before| before.min(most))
    }
}

impl Taken {
    /// How many these are.
    pub fn count(&self) -> usize {
        self.permit.num_permits()
    }

    /// Takes so many of them out, or all if there are no more.
    pub fn split(&mut self, n: usize) -> Taken {
        let n = n.min(self.count());
        // There are so many.
        let permit = self.permit.split(n).unwrap_or_else(|| unreachable!("{n} of {}", self.permit.num_permits()));
        Taken { permit, of: self.of.clone() }
    }

    /// Puts others with these.
    pub fn merge(&mut self, mut others: Taken) {
        let n = others.count();
        if let Some(permit) = others.permit.split(n) {
            self.permit.merge(permit);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let gone = self.of.settle(self.count());
        if let Some(permit) = self.permit.split(gone) {
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Take(usize),
        GiveBack(usize),
        Resize(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1..20_usize).prop_map(Step::Take),
            (0..20_usize).prop_map(Step::GiveBack),
            (1..40_usize).prop_map(Step::Resize),
        ]
    }

    #[test]
    fn no_more_are_taken_than_there_are_unless_they_were_before_there_were_fewer() {
        proptest!(|(steps in proptest::collection::vec(step(), 1..200))| {
            let places = Places::new(10);
            let mut all: Vec<Taken> = Vec::new();
            for step in steps {
                let before: usize = all.iter().map(Taken::count).sum();
                match step {
                    Step::Take(n) => {
                        let free = places.size().saturating_sub(before);
                        let taken = places.take_now(n);
                        prop_assert_eq!(taken.as_ref().map_or(0, Taken::count), free.min(n));
                        all.extend(taken);
                    }
                    Step::GiveBack(at) if at < all.len() => drop(all.swap_remove(at)),
                    Step::GiveBack(_) => {}
                    Step::Resize(n) => places.resize(n),
                }
                prop_assert_eq!(places.taken(), all.iter().map(Taken::count).sum::<usize>());
            }
            all.clear();
            prop_assert_eq!((places.taken(), places.take_now(100).map(|taken| taken.count())), (0, Some(places.size())));
        });
    }

    #[test]
    fn places_are_split_and_merged_without_one_being_lost() {
        let places = Places::new(5);
        let mut some = places.take_now(4).expect("there are five");
        let one = some.split(1);
        assert_eq!((one.count(), some.count(), places.taken()), (1, 3, 4));
        some.merge(one);
        assert_eq!((some.count(), places.taken()), (4, 4));
        drop(some);
        assert_eq!(places.taken(), 0);
    }

    #[tokio::test]
    async fn who_waits_is_served_when_there_are_more_places() {
        let places = Places::new(1);
        let first = places.take(1).await;
        let waiting = tokio::spawn({
            let places = places.clone();
            async move { places.take(1).await.count() }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        places.resize(2);
        assert_eq!(waiting.await.unwrap(), 1);
        drop(first);
    }
}

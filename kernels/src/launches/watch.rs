//! Launches of CubeCL.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use burn_cubecl::cubecl::future::block_on;
use burn_cubecl::cubecl::logging::{
    LaunchObservation, LaunchObserver, ProfileDuration, TimingMethod, TimingRequest,
};

use super::Launches;

/// Keeps what launches have measured, unread: reading waits for the device.
#[derive(Default)]
struct Watch {
    unread: Mutex<Vec<(&'static str, ProfileDuration)>>,
    read: Mutex<Vec<(&'static str, Duration)>>,
}

impl LaunchObserver for Watch {
    fn launched(&self, _kernel: &'static str) {}

    fn timing(&self) -> TimingRequest {
        TimingRequest::Deferred
    }

    fn profiled(&self, kernel: &'static str, profile: ProfileDuration) {
        self.unread.lock().unwrap_or_else(PoisonError::into_inner).push((kernel, profile));
    }

    fn timed(&self, kernel: &'static str, duration: Duration, _method: TimingMethod) {
        self.read.lock().unwrap_or_else(PoisonError::into_inner).push((kernel, duration));
    }
}

/// As [`super::observe`].
pub(super) fn observe<T>(work: impl FnOnce() -> T) -> (T, Vec<Launches>) {
    let watch = Arc::new(Watch::default());
    let observation = LaunchObservation::new(watch.clone());
    let result = work();
    drop(observation);
    let unread = taken(&watch.unread).into_iter().filter_map(|(kernel, profile)| {
        let ticks = block_on(profile.resolve())?;
        Some((kernel, ticks.duration()))
    });
    let read = taken(&watch.read);
    let mut by_kernel = BTreeMap::<String, Launches>::new();
    for (kernel, duration) in unread.chain(read) {
        let path = kernel.split('<').next().unwrap_or(kernel);
        let launches = by_kernel.entry(path.to_owned()).or_insert_with(|| Launches {
            kernel: path.to_owned(),
            count: 0,
            seconds: 0.0,
        });
        launches.count += 1;
        launches.seconds += duration.as_secs_f64();
    }
    (result, by_kernel.into_values().collect())
}

fn taken<T>(all: &Mutex<Vec<T>>) -> Vec<T> {
    std::mem::take(&mut *all.lock().unwrap_or_else(PoisonError::into_inner))
}

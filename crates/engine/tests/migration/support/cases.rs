//! Cases of a test that wait for most of their time.

use parking_lot::Mutex;

/// The number of cases at a time: few enough for a small machine not to delay any.
const AT_ONCE: usize = 6;

/// Tries all cases, several at the same time.
pub(crate) fn try_all<T, I>(cases: impl IntoIterator<Item = T, IntoIter = I>, test: impl Fn(T) + Sync)
where
    I: Iterator<Item = T> + Send,
{
    let cases = Mutex::new(cases.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(case) = { cases.lock().next() } {
                    test(case);
                }
            });
        }
    });
}

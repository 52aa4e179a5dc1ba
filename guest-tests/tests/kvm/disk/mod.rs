//! virtio devices: how a driver reaches them, and what a disk keeps whatever happens.

mod debian;
mod ext4;
mod faults;
mod kick;
mod kill;
mod pause;
mod rate_limit;
mod snapshot;
mod stalled;

use libtest_mimic::Trial;

use crate::Test;

/// This module's tests.
pub(crate) fn trials() -> Vec<Trial> {
    let tests: [(&str, Test); 8] = [
        (
            "disk::debian_takes_a_login_and_keeps_what_was_written",
            debian::keeps_what_was_written,
        ),
        (
            "disk::what_was_fsynced_outlives_a_killed_vmm",
            kill::what_was_fsynced_outlives_a_killed_vmm,
        ),
        (
            "disk::a_paused_vm_writes_nothing_and_goes_on_where_it_was",
            pause::a_paused_vm_writes_nothing,
        ),
        (
            "disk::a_guest_with_a_disk_is_carried_on_by_another_process",
            snapshot::a_guest_is_carried_on_by_another_process,
        ),
        (
            "disk::a_stalled_disk_holds_up_neither_pause_nor_snapshot_nor_stop",
            stalled::a_stalled_disk_holds_up_neither_pause_nor_snapshot_nor_stop,
        ),
        (
            "disk::a_limited_disk_and_limited_random_numbers_take_their_time_and_hold_up_no_pause",
            rate_limit::a_limited_disk_and_limited_random_numbers_take_their_time,
        ),
        (
            "disk::a_truncated_image_is_an_io_error_that_the_guest_outlives",
            faults::a_truncated_image_is_an_io_error,
        ),
        (
            "disk::a_kick_does_not_leave_the_kernel",
            kick::a_kick_does_not_leave_the_kernel,
        ),
    ];
    tests
        .into_iter()
        .map(|(name, test)| Trial::test(name, test))
        .collect()
}

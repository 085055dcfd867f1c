//! Room in the state directory that is kept for the day on which the disk is full: that a version was sent back has to be
//! known after a restart.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Several times what the routes take.
const ROOM: usize = 256 << 10;

/// Does `write` to `directory`; if there is no space left, once more in the room that was kept there.
pub(crate) fn within(directory: &Path, write: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let reserve = directory.join("reserve");
    let written = match write() {
        Err(error) if is_full(&error) && fs::remove_file(&reserve).is_ok() => write(),
        written => written,
    };
    if written.is_ok() && !reserve.exists() && keep(&reserve).is_err() {
        // Half of it would only be in the way. The next write tries again.
        let _ = fs::remove_file(&reserve);
    }
    written
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

fn keep(reserve: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(reserve)?;
    // Nothing that a file system could leave out or squeeze.
    let filling: Vec<u8> = (0..ROOM / 8).flat_map(|_| rand::random::<u64>().to_le_bytes()).collect();
    file.write_all(&filling)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::tests::World;

    #[test]
    fn on_a_full_disk_there_is_room_once() {
        let world = World::new("");
        let (directory, reserve) = (world.path(""), world.path("reserve"));
        let full = || Err(io::Error::from(ErrorKind::StorageFull));
        let tried = RefCell::new(0);
        // As long as the reserve is there nothing fits in.
        let write = || {
            *tried.borrow_mut() += 1;
            if reserve.exists() { full() } else { Ok(()) }
        };
        within(&directory, || Ok(())).unwrap();
        assert_eq!(fs::metadata(&reserve).unwrap().len(), ROOM as u64);
        within(&directory, write).unwrap();
        assert_eq!(*tried.borrow(), 2);
        assert!(reserve.exists(), "it is kept again as soon as there is room");
        assert_eq!(within(&directory, full).unwrap_err().kind(), ErrorKind::StorageFull);
        assert!(!reserve.exists());
        let denied = || Err(io::Error::from(ErrorKind::PermissionDenied));
        within(&directory, || Ok(())).unwrap();
        assert!(within(&directory, denied).is_err() && reserve.exists(), "that is for a full disk only");
    }
}

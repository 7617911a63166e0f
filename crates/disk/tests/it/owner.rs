//! Whose files are that root makes in another user's directory.

use std::os::unix::fs::{MetadataExt as _, chown};

use disk::{Disk as _, RealDisk};

/// Some user who is not root; there need be none of that number.
const SOMEBODY: u32 = 4_711;

#[test]
fn what_is_made_belongs_to_the_owner_of_the_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    // Only root may give it away; for others all stays theirs.
    let _ = chown(dir.path(), Some(SOMEBODY), Some(SOMEBODY));
    let owner = dir.path().metadata().expect("it is there").uid();
    let new_dir = dir.path().join("a/b");
    RealDisk.create_dir_all(&new_dir).expect("it is made");
    RealDisk.open(&new_dir.join("file")).expect("it is made");
    RealDisk.create_new(&dir.path().join("new")).expect("it is made");
    for name in ["a", "a/b", "a/b/file", "new"] {
        let about = dir.path().join(name).metadata().expect("it is there");
        assert_eq!(about.uid(), owner, "{name}");
    }
}

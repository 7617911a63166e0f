//! One suite over every disk.

use std::io::ErrorKind;
use std::path::Path;

use disk::double::Double;
use disk::{Disk, DiskFile, RealDisk};

fn on_each(check: impl Fn(&dyn Disk, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    check(&RealDisk, dir.path());
    let double = Double::new();
    double.create_dir_all(Path::new("/data")).unwrap();
    check(&double, Path::new("/data"));
}

fn content(file: &dyn DiskFile) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn names(disk: &dyn Disk, dir: &Path) -> Vec<(String, bool, u64)> {
    let name = |it: &disk::Entry| it.path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
    disk.list(dir).unwrap().iter().map(|it| (name(it), it.is_dir, it.len)).collect()
}

#[test]
fn files_are_written_anywhere_grow_and_shrink() {
    on_each(|disk, dir| {
        let path = dir.join("a");
        let file = disk.create_new(&path).unwrap();
        assert!(file.is_empty().unwrap());
        file.write_all_at(b"world", 6).unwrap();
        file.write_all_at(b"hello", 0).unwrap();
        assert_eq!(content(&*file), b"hello\0world");
        file.set_len(3).unwrap();
        file.set_len(5).unwrap();
        assert_eq!(content(&*file), b"hel\0\0");
        file.sync().unwrap();
        let mut buffer = [0; 3];
        assert_eq!(file.read_exact_at(&mut buffer, 3).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(file.read_exact_at(&mut buffer, 1 << 40).unwrap_err().kind(), ErrorKind::UnexpectedEof);

        let again = disk.open(&path).unwrap();
        again.write_all_at(b"!", 4).unwrap();
        assert_eq!(content(&*disk.open_to_read(&path).unwrap()), b"hel\0!");
        assert!(disk.open_to_read(&path).unwrap().write_all_at(b"?", 0).is_err());
    });
}

#[test]
fn names_are_made_moved_linked_and_removed() {
    on_each(|disk, dir| {
        let [a, b, c] = ["a", "b", "c"].map(|it| dir.join(it));
        disk.open(&a).unwrap().write_all_at(b"1", 0).unwrap();
        assert_eq!(disk.create_new(&a).unwrap_err().kind(), ErrorKind::AlreadyExists);
        disk.hard_link(&a, &b).unwrap();
        assert_eq!(disk.hard_link(&a, &b).unwrap_err().kind(), ErrorKind::AlreadyExists);
        disk.open(&b).unwrap().write_all_at(b"22", 0).unwrap();
        assert_eq!(content(&*disk.open_to_read(&a).unwrap()), b"22", "one file, two names");
        disk.open(&c).unwrap().write_all_at(b"333", 0).unwrap();
        let held = disk.open_to_read(&b).unwrap();
        disk.rename(&c, &b).unwrap();
        assert_eq!(content(&*held), b"22", "what is open stays");
        assert_eq!(names(disk, dir), [("a".into(), false, 2), ("b".into(), false, 3)]);
        disk.remove_file(&a).unwrap();
        for error in [
            disk.remove_file(&a).unwrap_err(),
            disk.rename(&a, &b).unwrap_err(),
            disk.hard_link(&a, &c).unwrap_err(),
            disk.open_to_read(&a).unwrap_err(),
            disk.open(&dir.join("no/a")).unwrap_err(),
            disk.list(&dir.join("no")).unwrap_err(),
            disk.sync_dir(&dir.join("no")).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::NotFound);
        }
        disk.sync_dir(dir).unwrap();
        assert_eq!(names(disk, dir), [("b".into(), false, 3)]);
    });
}

#[test]
fn folders_are_made_listed_and_removed_when_empty() {
    on_each(|disk, dir| {
        let (a, b) = (dir.join("a"), dir.join("a/b"));
        disk.create_dir_all(&b).unwrap();
        disk.create_dir_all(&b).unwrap();
        disk.create_new(&b.join("f")).unwrap();
        assert_eq!(names(disk, dir), [("a".into(), true, 0)]);
        assert_eq!(names(disk, &a), [("b".into(), true, 0)]);
        assert_eq!(disk.remove_dir(&a).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
        assert_eq!(disk.remove_dir(&b).unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
        disk.rename(&b.join("f"), &dir.join("f")).unwrap();
        assert!(disk.create_dir_all(&dir.join("f/g")).is_err(), "a file stands in the way");
        disk.remove_dir(&b).unwrap();
        disk.remove_dir(&a).unwrap();
        assert_eq!(names(disk, dir), [("f".into(), false, 0)]);
        let space = disk.space(dir).unwrap();
        assert!(space.total >= space.free && space.free > 0, "{space:?}");
    });
}

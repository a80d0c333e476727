//! The control groups of systemd units, by the names of their directories in the unified hierarchy (cgroup v2).
//!
//! systemd puts a unit into a directory of its name, in that of its slice, and a slice into the slice that its name begins with:
//! `user-1000.slice` is in `user.slice`. So a slice has one place that its name tells; the place of any other unit is looked
//! for, in slices only. What is below a service or scope belongs to whoever runs in it (a user's own manager, a container), who
//! may give directories there any name; and slices of pods are many and hold no unit that anybody would name alone.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::sysfs;
use crate::net::facts::Cgroup;

/// What a scan found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Scan {
    /// The control groups of the wanted units that run.
    pub units: BTreeMap<String, BTreeSet<Cgroup>>,
    /// Why something may be missing.
    pub incomplete: Option<String>,
}

/// What matters in a directory: when a directory of such a name comes or goes, the next scan may find something else.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Interest {
    /// These names.
    names: BTreeSet<String>,
    /// Every slice in which units are looked for.
    slices: bool,
}

impl Interest {
    /// Whether a directory of this name matters.
    pub(super) fn is_in(&self, name: &OsStr) -> bool {
        let Some(name) = name.to_str() else { return false };
        self.names.contains(unescape(name)) || self.names.contains(name) || (self.slices && is_searched(name))
    }
}

/// How many directories are looked at and watched; a host with 1,000 users logged in has about as many.
pub(super) const MOST_DIRECTORIES: usize = 4096;
/// How deep units are looked for; systemd nests slices about as deep as their names have dashes.
const DEEPEST_SEARCH: usize = 16;

/// Where the unified hierarchy is mounted, below `root` and as /proc/self/mountinfo has it; in a copy of another machine, where it
/// usually is. `None` where there is none.
pub fn find(root: &Path) -> Option<PathBuf> {
    if root == Path::new("/") {
        return mounted(&sysfs::text(Path::new("/proc/self/mountinfo"))?);
    }
    ["sys/fs/cgroup/unified", "sys/fs/cgroup"].map(|path| root.join(path)).into_iter().find(|path| path.is_dir())
}

/// The mount point of the unified hierarchy, from the text of mountinfo (proc_pid_mountinfo(5)): the usual one, if there are several.
fn mounted(mountinfo: &str) -> Option<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        (kind.split(' ').next() == Some("cgroup2")).then(|| PathBuf::from(unquote(point)))
    });
    let usual =
        |point: &PathBuf| ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].iter().position(|path| point == Path::new(path));
    points.max_by_key(|point| usual(point))
}

/// A path as mountinfo writes it: blanks and the like are octal (`\040`).
fn unquote(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                path.push(char::from(code));
                path.push_str(part.get(3..).unwrap_or_default());
            }
            None => {
                path.push('\\');
                path.push_str(part);
            }
        }
    }
    path
}

/// The control groups of these units below `root`, which is the root of the hierarchy.
pub fn scan(root: &Path, units: &BTreeSet<String>) -> Scan {
    scan_and(root, units, &mut |_, _| Ok(()))
}

/// The control groups of a process in this unit: the unit's own, wherever it runs, and those above it.
pub fn of_process(root: &Path, unit: &str) -> BTreeSet<Cgroup> {
    let mut visited = Vec::new();
    let scan = scan_and(root, &BTreeSet::from([unit.to_owned()]), &mut |path, _| {
        visited.push(path.to_owned());
        Ok(())
    });
    let id = |path: &Path| fs::symlink_metadata(path).ok().map(|metadata| metadata.ino());
    let mut groups = BTreeSet::new();
    for own in scan.units.into_values().flatten() {
        groups.insert(own);
        let holds = |path: &PathBuf| sysfs::names(path).iter().any(|name| id(&path.join(name)) == Some(own.id));
        for parent in visited.iter().filter(|path| holds(path)) {
            let above = parent.ancestors().take_while(|path| *path != root).filter_map(id);
            groups.extend(above.zip(1..).map(|(id, up)| Cgroup { level: own.level.saturating_sub(up), id }));
        }
    }
    groups
}

/// The same; `visit` is called for each directory with what matters in it, before the directory is looked at, so that nothing that
/// happens meanwhile is missed.
pub(super) fn scan_and(
    root: &Path,
    units: &BTreeSet<String>,
    visit: &mut dyn FnMut(&Path, Interest) -> Result<(), String>,
) -> Scan {
    let mut scanner = Scanner { visit, left: MOST_DIRECTORIES, found: Scan::default() };
    let mut here = Wanted::default();
    for unit in units {
        match path_of(unit) {
            Some(path) => here.paths.push((unit, path)),
            None => drop(here.names.insert(unit)),
        }
    }
    if !units.is_empty() {
        scanner.directory(root, 0, &here);
    }
    scanner.found
}

/// The path of a unit from the root, where its name says it.
fn path_of(unit: &str) -> Option<Vec<String>> {
    if unit.contains('/') {
        return Some(unit.split('/').map(str::to_owned).collect());
    }
    let stem = unit.strip_suffix(".slice")?;
    let dashes = stem.match_indices('-').map(|(at, _)| format!("{}.slice", &stem[..at]));
    Some(dashes.chain([unit.to_owned()]).collect())
}

/// What is wanted in and below one directory.
#[derive(Clone, Default)]
struct Wanted<'u> {
    /// Units with what is left of their path.
    paths: Vec<(&'u str, Vec<String>)>,
    /// Units that may be anywhere below; empty where nothing is looked for.
    names: BTreeSet<&'u str>,
}

struct Scanner<'v> {
    visit: &'v mut dyn FnMut(&Path, Interest) -> Result<(), String>,
    /// How many more directories may be looked at.
    left: usize,
    found: Scan,
}

impl Scanner<'_> {
    fn directory(&mut self, path: &Path, depth: usize, wanted: &Wanted<'_>) {
        let Some(left) = self.left.checked_sub(1) else {
            self.give_up(format!("there are more than {MOST_DIRECTORIES} control groups to look at"));
            return;
        };
        self.left = left;
        let next = wanted.paths.iter().filter_map(|(_, path)| path.first().cloned());
        let names = next.chain(wanted.names.iter().map(|name| (*name).to_owned())).collect();
        let searching = !wanted.names.is_empty();
        if let Err(why) = (self.visit)(path, Interest { names, slices: searching }) {
            self.give_up(why);
        }
        // What a slice of pods holds is hundreds: only where something is looked for, all names are read.
        let children = if searching { sysfs::names(path) } else { named(wanted) };
        for child in children {
            let name = unescape(&child);
            let mut below = Wanted::default();
            let mut here = BTreeSet::new();
            for (unit, path) in &wanted.paths {
                let Some((first, rest)) = path.split_first() else { continue };
                if first != name && *first != child {
                    continue;
                }
                match rest {
                    [] => drop(here.insert(*unit)),
                    rest => below.paths.push((unit, rest.to_vec())),
                }
            }
            here.extend(wanted.names.get(name));
            if searching && is_searched(&child) && depth < DEEPEST_SEARCH {
                below.names.clone_from(&wanted.names);
            }
            if here.is_empty() && below.paths.is_empty() && below.names.is_empty() {
                continue;
            }
            let child = path.join(&child);
            // A link in a copy of a machine leads out of it.
            let Some(metadata) = fs::symlink_metadata(&child).ok().filter(fs::Metadata::is_dir) else { continue };
            if let Ok(level) = u8::try_from(depth + 1) {
                for unit in here {
                    let cgroup = Cgroup { level, id: metadata.ino() };
                    self.found.units.entry(unit.to_owned()).or_default().insert(cgroup);
                }
            }
            if !below.paths.is_empty() || !below.names.is_empty() {
                self.directory(&child, depth + 1, &below);
            }
        }
    }

    fn give_up(&mut self, why: String) {
        self.found.incomplete.get_or_insert(why);
    }
}

/// The names of the directories that paths lead through, as systemd may have written them.
fn named(wanted: &Wanted<'_>) -> Vec<String> {
    let names: BTreeSet<&String> = wanted.paths.iter().filter_map(|(_, path)| path.first()).collect();
    names.into_iter().flat_map(|name| [name.clone(), format!("_{name}")]).collect()
}

/// Whether units are looked for in a directory of this name: a slice, but none of pods.
fn is_searched(name: &str) -> bool {
    let is_pods = name.starts_with("kubepods") || name.contains("-kubepods");
    name.ends_with(".slice") && !is_pods
}

/// The name of the unit whose directory has this name: systemd puts a "_" before what the kernel's own files could be called
/// (systemd's `cg_escape`).
fn unescape(name: &str) -> &str {
    name.strip_prefix('_').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn set(units: &[&str]) -> BTreeSet<String> {
        units.iter().map(|unit| (*unit).to_owned()).collect()
    }

    /// A hierarchy with these directories.
    fn tree(directories: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in directories {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        root
    }

    /// Where the units were found: "unit directory", sorted.
    fn places(root: &Path, units: &[&str]) -> Vec<String> {
        let mut all = BTreeMap::new();
        let mut folders = vec![(root.to_owned(), 0)];
        while let Some((folder, level)) = folders.pop() {
            let id = fs::metadata(&folder).unwrap().ino();
            let path = folder.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            all.insert(Cgroup { level, id }, path);
            folders.extend(sysfs::names(&folder).into_iter().map(|name| (folder.join(name), level + 1)));
        }
        let scan = scan(root, &set(units));
        assert_eq!(scan.incomplete, None);
        let pairs = scan.units.iter().flat_map(|(unit, cgroups)| cgroups.iter().map(move |cgroup| (unit, cgroup)));
        let mut places: Vec<String> = pairs.map(|(unit, cgroup)| format!("{unit} {}", all[cgroup])).collect();
        places.sort();
        places
    }

    #[test]
    fn a_process_is_in_its_unit_and_in_all_above_it() {
        let root = tree(HOST);
        let group = |path: &str| {
            let id = fs::metadata(root.path().join(path)).unwrap().ino();
            Cgroup { level: u8::try_from(path.split('/').count()).unwrap(), id }
        };
        let of = |unit: &str| of_process(root.path(), unit);
        assert_eq!(of("sshd.service"), ["system.slice", "system.slice/sshd.service"].map(group).into());
        let getty =
            ["system.slice", "system.slice/system-getty.slice", "system.slice/system-getty.slice/getty@tty1.service"];
        assert_eq!(of("getty@tty1.service"), getty.map(group).into());
        assert_eq!(of(getty[2]), getty.map(group).into());
        assert_eq!(of("user-1000.slice"), ["user.slice", "user.slice/user-1000.slice"].map(group).into());
        assert_eq!(of("init.scope"), ["init.scope"].map(group).into());
        assert_eq!(of("nothing.service"), BTreeSet::new());
    }

    const HOST: &[&str] = &[
        "init.scope",
        "system.slice/sshd.service",
        "system.slice/system-getty.slice/getty@tty1.service",
        "system.slice/_memory.service",
        "system.slice/docker-0a1b.scope/sshd.service",
        "user.slice/user-1000.slice/session-3.scope",
        "user.slice/user-1000.slice/user@1000.service/app.slice/ollama.service",
        "gpu.slice/gpu-train.slice/ollama.service",
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-1.scope",
        "kubepods.slice/ollama.service",
        "docker/0a1b/_x",
    ];

    #[test]
    fn a_unit_is_found_in_whichever_slice_it_is_but_not_where_others_make_directories() {
        let root = tree(HOST);
        let check = |units: &[&str], expected: &[&str]| assert_eq!(places(root.path(), units), expected, "{units:?}");
        check(&["sshd.service"], &["sshd.service system.slice/sshd.service"]);
        check(&["ollama.service"], &["ollama.service gpu.slice/gpu-train.slice/ollama.service"]);
        check(&["getty@tty1.service"], &["getty@tty1.service system.slice/system-getty.slice/getty@tty1.service"]);
        check(&["getty@tty2.service", "getty@.service"], &[]);
        check(
            &["init.scope", "session-3.scope"],
            &["init.scope init.scope", "session-3.scope user.slice/user-1000.slice/session-3.scope"],
        );
        check(&["memory.service"], &["memory.service system.slice/_memory.service"]);
        check(&["cri-1.scope"], &[]);
    }

    #[test]
    fn a_slice_is_where_its_name_says_and_a_path_is_exact() {
        let root = tree(HOST);
        let check = |units: &[&str], expected: &[&str]| assert_eq!(places(root.path(), units), expected, "{units:?}");
        check(&["user.slice"], &["user.slice user.slice"]);
        check(&["user-1000.slice"], &["user-1000.slice user.slice/user-1000.slice"]);
        check(&["app.slice", "gpu-none.slice"], &[]);
        check(
            &["kubepods-burstable-pod1.slice"],
            &["kubepods-burstable-pod1.slice kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice"],
        );
        check(
            &["docker/0a1b", "docker/0a1b/_x", "system.slice/memory.service", "system.slice/ollama.service"],
            &[
                "docker/0a1b docker/0a1b",
                "docker/0a1b/_x docker/0a1b/_x",
                "system.slice/memory.service system.slice/_memory.service",
            ],
        );
        let deep = "user.slice/user-1000.slice/user@1000.service/app.slice/ollama.service";
        check(
            &[deep, "ollama.service", "gpu.slice"],
            &[
                "gpu.slice gpu.slice",
                "ollama.service gpu.slice/gpu-train.slice/ollama.service",
                &format!("{deep} {deep}"),
            ],
        );
    }

    /// The directories that a scan looks at.
    fn visited(root: &Path, units: &[&str]) -> Vec<String> {
        let mut visited = Vec::new();
        scan_and(root, &set(units), &mut |path, _| {
            visited.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            Ok(())
        });
        visited.sort();
        visited
    }

    #[test]
    fn only_what_can_hold_a_wanted_unit_is_looked_at() {
        let root = tree(HOST);
        assert_eq!(visited(root.path(), &[]), Vec::<String>::new());
        assert_eq!(visited(root.path(), &["system.slice/sshd.service"]), ["", "system.slice"]);
        assert_eq!(visited(root.path(), &["user.slice"]), [""]);
        assert_eq!(visited(root.path(), &["gone.slice/a/b"]), [""]);
        let searched =
            ["", "gpu.slice", "gpu.slice/gpu-train.slice", "system.slice", "system.slice/system-getty.slice"];
        let of_users = ["user.slice", "user.slice/user-1000.slice"];
        assert_eq!(visited(root.path(), &["a.service"]), [&searched[..], &of_users[..]].concat());
    }

    #[test]
    fn what_comes_and_goes_matters_only_if_a_scan_would_see_it() {
        let root = tree(&["system.slice", "kubepods.slice"]);
        let mut interests = BTreeMap::new();
        scan_and(root.path(), &set(&["a.service", "kubepods.slice/b.scope"]), &mut |path, interest| {
            interests.insert(path.file_name().unwrap().to_str().unwrap().to_owned(), interest);
            Ok(())
        });
        let matters = |directory: &str, name: &str| interests[directory].is_in(OsStr::new(name));
        for (directory, name) in [
            ("system.slice", "a.service"),
            ("system.slice", "_a.service"),
            ("system.slice", "system-x.slice"),
            ("kubepods.slice", "b.scope"),
        ] {
            assert!(matters(directory, name), "{directory} {name}");
        }
        for (directory, name) in [
            ("system.slice", "b.service"),
            ("system.slice", "b.scope"),
            ("kubepods.slice", "a.service"),
            ("kubepods.slice", "kubepods-burstable.slice"),
        ] {
            assert!(!matters(directory, name), "{directory} {name}");
        }
    }

    #[test]
    fn a_hierarchy_without_an_end_is_given_up_on() {
        let root = tree(&[]);
        for number in 0..MOST_DIRECTORIES + 10 {
            fs::create_dir(root.path().join(format!("a{number}.slice"))).unwrap();
        }
        let found = scan(root.path(), &set(&["x.service", "a5.slice"]));
        assert!(found.incomplete.unwrap().contains("more than 4096"));
        assert_eq!(found.units.len(), 1, "what was found counts");
        let deep: PathBuf = std::iter::repeat_n("d.slice", 200).collect();
        let root = tree(&[deep.to_str().unwrap()]);
        fs::create_dir(root.path().join(&deep).join("x.service")).unwrap();
        assert!(scan(root.path(), &set(&["x.service"])).units.is_empty());
    }

    #[test]
    fn the_hierarchy_is_where_mountinfo_says() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      37 31 0:37 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,nosuid shared:1 master:2 - cgroup2 cgroup2 rw\n";
        assert_eq!(mounted(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let twice =
            "50 1 0:38 / /run/my\\040groups rw - cgroup2 cgroup2 rw\n41 1 0:38 / /sys/fs/cgroup rw - cgroup2 x rw\n";
        assert_eq!(mounted(twice), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(mounted(&twice[..51]), Some(PathBuf::from("/run/my groups")));
        assert_eq!(mounted("31 23 0:28 / / rw - ext4 /dev/sda rw\n"), None);
        let copy = tree(&["sys/fs/cgroup"]);
        assert_eq!(find(copy.path()), Some(copy.path().join("sys/fs/cgroup")));
        assert_eq!(find(Path::new("/nonexistent")), None);
    }
}

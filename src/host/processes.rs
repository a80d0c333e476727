//! The processes that hold sockets, with where they belong and which GPUs and RDMA devices they have open, by /proc.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use super::sysfs;
use crate::net::listener::{Home, Pod, Process};

/// The holders of sockets.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// By the inode of the socket.
    pub(super) by_inode: BTreeMap<u64, BTreeSet<u32>>,
    /// By process id; only those that hold a wanted socket or were asked for.
    pub(super) processes: BTreeMap<u32, Process>,
    /// Whether everybody's were looked into, of all processes there are: a socket that nobody holds is the kernel's then.
    pub(super) complete: bool,
}

/// Looks through all processes below `root` for those that hold one of these sockets, and looks at those with these ids.
pub(super) fn find(root: &Path, inodes: &BTreeSet<u64>, pids: &BTreeSet<u32>) -> Found {
    let proc = root.join("proc");
    let mut found = Found { complete: in_first_namespace(root), ..Found::default() };
    let pods = pods(&root.join("var/log/pods"));
    for pid in sysfs::names(&proc).into_iter().filter_map(|name| name.parse::<u32>().ok()) {
        let directory = proc.join(pid.to_string());
        let entries = match fs::read_dir(directory.join("fd")) {
            Ok(entries) => entries,
            Err(error) => {
                // One that ended meanwhile holds nothing.
                found.complete &= error.kind() != io::ErrorKind::PermissionDenied;
                continue;
            }
        };
        let links = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
        let links: BTreeSet<String> = links.filter_map(|link| link.to_str().map(str::to_owned)).collect();
        let held: Vec<u64> =
            links.iter().filter_map(|link| socket(link)).filter(|inode| inodes.contains(inode)).collect();
        if held.is_empty() && !pids.contains(&pid) {
            continue;
        }
        for inode in held {
            found.by_inode.entry(inode).or_default().insert(pid);
        }
        let devices = links.iter().filter_map(|link| device(link)).collect();
        found.processes.insert(pid, process(&directory, pid, devices, &pods));
    }
    found
}

/// Whether the processes that we see are all of this machine's: a container with a process namespace of its own sees few.
fn in_first_namespace(root: &Path) -> bool {
    /// `PROC_PID_INIT_INO`, include/linux/proc_ns.h.
    const FIRST: &str = "pid:[4026531836]";
    root != Path::new("/") || fs::read_link("/proc/self/ns/pid").is_ok_and(|link| link == Path::new(FIRST))
}

fn process(
    directory: &Path,
    pid: u32,
    devices: BTreeSet<String>,
    pods: &BTreeMap<String, (String, String)>,
) -> Process {
    let text = |name: &str| fs::read(directory.join(name)).unwrap_or_default();
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut home = home(&lossy(&text("cgroup")));
    if let Some(pod) = &mut home.pod {
        pod.name = pods.get(&pod.uid).cloned();
    }
    Process {
        pid,
        name: lossy(&text("comm")).trim_end().to_owned(),
        words: words(&lossy(&text("cmdline"))),
        uid: uid(&lossy(&text("status"))),
        home,
        devices,
    }
}

/// The inode of a link like `socket:[4242]` (proc_pid_fd(5)).
pub(super) fn socket(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The device file, if it is one of a GPU, an accelerator or an RDMA device: NVIDIA's driver, AMD's (Documentation/gpu/amdgpu and
/// amdkfd), the render nodes of others, Habana's and the accelerator class (Documentation/accel), and rdma-core's.
fn device(link: &str) -> Option<String> {
    let path = link.strip_suffix(" (deleted)").unwrap_or(link);
    let name = path.strip_prefix("/dev/")?;
    let numbered = |prefix: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let of_a_directory = ["nvidia-caps/", "infiniband/", "accel/"].iter().any(|directory| name.starts_with(directory));
    let known =
        name == "kfd" || name.starts_with("nvidia") || numbered("dri/renderD") || numbered("hl") || of_a_directory;
    known.then(|| path.to_owned())
}

/// The program and up to two words after it, without options: what comes after a long option may be its value, and a secret.
fn words(command_line: &str) -> Vec<String> {
    let base = |word: &str| {
        let name = if word.starts_with('/') { word.rsplit('/').next().unwrap_or(word) } else { word };
        name.chars().take(LONGEST_WORD).collect::<String>()
    };
    let mut words = command_line.split('\0').filter(|word| !word.is_empty());
    let program = words.next().map(base);
    // `-c` has a program after it, and others a value.
    let plain = words
        .take_while(|word| !word.starts_with("--") && *word != "-c")
        .filter(|word| !word.starts_with('-'))
        .map(base);
    program.into_iter().chain(plain.take(2)).collect()
}

/// Longer words are cut.
const LONGEST_WORD: usize = 64;

/// The effective user in the text of /proc/PID/status.
fn uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The namespace and name of each pod that the kubelet keeps logs of, by UID: `NAMESPACE_NAME_UID` (kubernetes
/// pkg/kubelet/kuberuntime/helpers.go, BuildPodLogsDirectory).
pub(super) fn pods(directory: &Path) -> BTreeMap<String, (String, String)> {
    let pod = |name: String| {
        let mut parts = name.split('_').map(str::to_owned);
        let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
        parts.next().is_none().then_some((uid, (namespace, name)))
    };
    sysfs::names(directory).into_iter().filter_map(pod).collect()
}

/// Where a process belongs, by the text of /proc/PID/cgroup (cgroups(7)): the unified hierarchy, or systemd's own in a hybrid.
pub(super) fn home(text: &str) -> Home {
    let path = |controllers: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            (fields.next()? == controllers).then(|| fields.next()).flatten()
        })
    };
    let unified = path("").filter(|path| *path != "/");
    of_path(unified.or_else(|| path("name=systemd")).unwrap_or_default())
}

/// Where a process in this control group belongs.
pub(super) fn of_path(path: &str) -> Home {
    let mut home = Home::default();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        if let Some(uid) = pod_uid(name) {
            home.pod = Some(Pod { uid, name: None });
        } else if let Some(id) = container(name) {
            home.container = Some(id);
        } else if home.pod.is_none() && (name.ends_with(".service") || name.ends_with(".scope")) {
            home.unit = Some(name.to_owned());
        }
    }
    if home.pod.is_some() {
        home.unit = None;
    }
    home
}

/// `kubepods-burstable-podUID.slice`, with underscores in the UID (systemd), or `podUID` (cgroupfs).
fn pod_uid(name: &str) -> Option<String> {
    let slice = name.strip_prefix("kubepods").and_then(|rest| rest.strip_suffix(".slice"));
    let (_, uid) = slice.unwrap_or_else(|| if name.starts_with("pod") { name } else { "" }).rsplit_once("pod")?;
    // A static pod's UID is a hash without dashes.
    let fits = uid.len() >= 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'_' | b'-'));
    fits.then(|| uid.replace('_', "-"))
}

/// The id in `cri-containerd-ID.scope`, `docker-ID.scope` and the like, or the id alone.
fn container(name: &str) -> Option<String> {
    let scope = name.strip_suffix(".scope").unwrap_or(name);
    let id = scope.rsplit(['-', ':']).next()?;
    (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn a_control_group_tells_the_unit_or_the_pod() {
        let unit = |name: &str| Home { unit: Some(name.to_owned()), ..Home::default() };
        let pod = |uid: &str| Home {
            unit: None,
            pod: Some(Pod { uid: uid.to_owned(), name: None }),
            container: Some(ID.to_owned()),
        };
        let uid = "01234567-89ab-cdef-0123-456789abcdef";
        for (text, expected) in [
            ("0::/system.slice/ssh.service\n", unit("ssh.service")),
            ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/jupyter.service\n", unit("jupyter.service")),
            ("0::/user.slice/user-0.slice/session-3.scope\n", unit("session-3.scope")),
            ("9:name=systemd:/system.slice/ray.service\n0::/\n", unit("ray.service")),
            ("0::/\n", Home::default()),
            ("nonsense", Home::default()),
        ] {
            assert_eq!(home(text), expected, "{text}");
        }
        let escaped = uid.replace('-', "_");
        let slice = "kubepods.slice/kubepods-burstable.slice";
        for path in [
            format!("0::/{slice}/kubepods-burstable-pod{escaped}.slice/cri-containerd-{ID}.scope"),
            format!("0::/kubepods.slice/kubepods-pod{escaped}.slice/crio-{ID}.scope"),
            format!("0::/kubepods/besteffort/pod{uid}/{ID}"),
            format!(
                "4:memory:/other\n0::/system.slice/containerd.service/{slice}/kubepods-burstable-pod{escaped}.slice/{ID}"
            ),
        ] {
            assert_eq!(home(&path), pod(uid), "{path}");
        }
        let docker = Home { container: Some(ID.to_owned()), ..Home::default() };
        assert_eq!(home(&format!("0::/system.slice/docker-{ID}.scope")), docker);
        assert_eq!(home(&format!("0::/docker/{ID}")), docker);
        let fixed = "0123456789abcdef0123456789abcdef";
        assert_eq!(pod_uid(&format!("kubepods-pod{fixed}.slice")).unwrap(), fixed);
        assert_eq!(pod_uid("podman.service"), None);
    }

    #[test]
    fn device_files_of_gpus_and_rdma_are_known_by_name() {
        for known in [
            "/dev/nvidia0",
            "/dev/nvidiactl",
            "/dev/nvidia-uvm",
            "/dev/nvidia-caps/nvidia-cap1",
            "/dev/kfd",
            "/dev/dri/renderD128",
            "/dev/accel/accel0",
            "/dev/hl3",
            "/dev/infiniband/uverbs0",
        ] {
            assert_eq!(device(known).as_deref(), Some(known));
        }
        assert_eq!(device("/dev/nvidia0 (deleted)").as_deref(), Some("/dev/nvidia0"));
        for other in ["/dev/null", "/dev/dri/card0", "/dev/hlx", "/home/nvidia0", "/dev/hl", "socket:[1]"] {
            assert_eq!(device(other), None, "{other}");
        }
    }

    #[test]
    fn of_a_command_line_what_tells_the_program_is_kept_and_nothing_that_may_be_a_secret() {
        let of = |line: &str| words(&line.replace(' ', "\0"));
        assert_eq!(
            of("/usr/bin/python3 -m vllm.entrypoints.openai.api_server --api-key s3cret"),
            ["python3", "vllm.entrypoints.openai.api_server"]
        );
        assert_eq!(of("/usr/bin/python3 /usr/local/bin/vllm serve m --port 1"), ["python3", "vllm", "serve"]);
        assert_eq!(of("sh -c secret"), ["sh"]);
        assert_eq!(of("--odd"), ["--odd"]);
        assert!(of("").is_empty());
        assert_eq!(uid("Name:\tx\nUid:\t1000\t1001\t1000\t1000\n"), Some(1001));
        assert_eq!((uid("Uid:"), socket("socket:[42]"), socket("pipe:[42]")), (None, Some(42), None));
    }
}

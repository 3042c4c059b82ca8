//! A save is stopped before each of its changes of the disk.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use super::super::fault::{Fault, Watch};
use super::spread::{Spread, check_on, save_on};
use super::*;

const SPREAD: Spread = Spread::Flat;

/// What is stopped: the save of a step by some ranks, in a folder that holds the steps 10 and 20, of
/// which two are kept.
#[derive(Debug, Clone, Copy)]
struct Scene {
    step: u64,
    ranks: usize,
}

/// The second replaces a checkpoint.
const SCENES: [Scene; 3] =
    [Scene { step: 30, ranks: 1 }, Scene { step: 20, ranks: 1 }, Scene { step: 30, ranks: 2 }];

impl Scene {
    fn save(self, folder: &Path) -> Result<(), CheckpointError> {
        let results = save_on(folder, self.step, SPREAD, self.ranks);
        let mut results: Vec<_> = results.into_iter().map(|result| result.map(drop)).collect();
        assert!(results.iter().all(|result| result.is_ok() == results[0].is_ok()));
        results.swap_remove(0)
    }

    /// A folder as it was before, copied from `template`.
    fn folder(template: &Path) -> TempDir {
        let folder = tempdir().unwrap();
        for step in names_below(template).iter().filter(|name| name.starts_with("step")) {
            fs::create_dir(folder.path().join(step)).unwrap();
            for name in names_below(&template.join(step)) {
                let file = Path::new(step).join(name);
                fs::copy(template.join(&file), folder.path().join(&file)).unwrap();
            }
        }
        folder
    }

    /// The newest checkpoint is whole, and the next save succeeds.
    fn check_after(self, folder: &Path, case: &str) {
        let newest = resolve_resume(folder, Resume::Auto).unwrap().expect(case);
        let checkpoint = open(&newest).expect(case);
        checkpoint.verify().expect(case);
        let step = checkpoint.step();
        assert!(step == 20 || step == self.step, "{case}: step {step}");
        check_on(&newest, step, SPREAD, 1);
        for entry in list(folder).unwrap() {
            open(&entry.path).unwrap().verify().expect(case);
        }
        self.save(folder).expect(case);
        let kept = if self.step == 20 { "step-00000010" } else { "step-00000020" };
        let saved = format!("step-{:08}", self.step);
        assert_eq!(names_below(folder), [".lock", kept, &saved], "{case}");
        check_on(&folder.join(saved), self.step, SPREAD, 1);
    }
}

fn template() -> TempDir {
    let folder = tempdir().unwrap();
    for step in [10, 20] {
        save_on(folder.path(), step, SPREAD, 1).into_iter().for_each(|path| drop(path.unwrap()));
    }
    folder
}

/// How many changes a save makes.
fn changes(scene: Scene, template: &Path) -> usize {
    let folder = Scene::folder(template);
    let watch = Watch::new(folder.path(), Fault::None, 0);
    scene.save(folder.path()).unwrap();
    watch.seen()
}

fn stopped_everywhere(fault: Fault) {
    let template = template();
    for scene in SCENES {
        let count = changes(scene, template.path());
        assert!(count > 30, "{scene:?} makes {count} changes");
        for at in 1..=count {
            let case = format!("{scene:?}, {fault:?} at {at} of {count}");
            let folder = Scene::folder(template.path());
            let watch = Watch::new(folder.path(), fault, at);
            scene.save(folder.path()).expect_err(&case);
            drop(watch);
            if fault == Fault::Refuse {
                let mut names = names_below(folder.path());
                names.retain(|name| name.contains(".partial-"));
                assert!(names.is_empty(), "{case}: {names:?}");
            }
            scene.check_after(folder.path(), &case);
        }
    }
}

#[test]
fn a_save_that_stops_at_any_point_loses_nothing() {
    stopped_everywhere(Fault::Stop);
}

#[test]
fn a_power_cut_at_any_point_loses_nothing_that_was_saved() {
    stopped_everywhere(Fault::PowerCut);
}

#[test]
fn a_disk_that_refuses_at_any_point_leaves_the_older_ones() {
    stopped_everywhere(Fault::Refuse);
}

/// Set for a process that is to be killed: the number of the scene, and of the change.
const SCENE: &str = "BURN_TITAN_TEST_SCENE";
const FOLDER: &str = "BURN_TITAN_TEST_FOLDER";

/// What a process does that is to be killed; nothing in an ordinary run of the tests.
#[test]
fn victim() {
    let (Ok(scene), Ok(folder)) = (std::env::var(SCENE), std::env::var(FOLDER)) else { return };
    let (scene, at) = scene.split_once(' ').unwrap();
    let _watch = Watch::new(Path::new(&folder), Fault::AwaitKill, at.parse().unwrap());
    SCENES[scene.parse::<usize>().unwrap()].save(Path::new(&folder)).unwrap();
}

#[test]
fn a_killed_process_loses_nothing() {
    let template = template();
    for (number, scene) in SCENES.into_iter().enumerate() {
        let count = changes(scene, template.path());
        // The renames and deletions are among the last.
        for at in [2, count / 2, count - 12, count - 8, count - 3, count] {
            let folder = Scene::folder(template.path());
            let mut process = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "checkpoint::tests::crash::victim", "--nocapture"])
                .env(SCENE, format!("{number} {at}"))
                .env(FOLDER, folder.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(process.stdout.take().unwrap()).lines();
            let reached = lines.map_while(Result::ok).any(|line| line == format!("reached {at}"));
            process.kill().unwrap();
            process.wait().unwrap();
            let case = format!("{scene:?}, killed at {at} of {count}");
            assert!(reached, "{case}");
            scene.check_after(folder.path(), &case);
        }
    }
}

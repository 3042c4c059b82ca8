//! Schedules in files.

use proptest::prelude::*;

use super::*;

#[test]
fn every_schedule_comes_back() {
    for family in Family::ALL {
        for (ranks, micro_batches) in [(1, 1), (2, 5), (4, 8), (5, 3)] {
            let stages_per_rank = family.stages_per_rank().map_or(3, |(stages, _)| stages);
            let schedule = family.schedule(shape(ranks, stages_per_rank, micro_batches)).unwrap();
            let text = csv::write(&schedule).unwrap();
            assert_eq!(csv::parse(&text), Ok(schedule), "{text}");
        }
    }
}

#[test]
fn columns_are_moments() {
    let text = csv::write(&gpipe(shape(2, 1, 2)).unwrap()).unwrap();
    assert_eq!(text, "0F0,0F1,,,0B0,0B1\n,1F0,1F1,1B0,1B1,\n");
}

#[test]
fn what_pytorch_writes() {
    let text = "\u{feff}0F0,0F1,,,3F0,(0F2;3B0)OVERLAP_F_B\r\n\"1F0\", 1F1 ,2F0,2I0,2W0\r\n\r\n";
    let schedule = csv::parse(text).unwrap();
    assert_eq!(schedule.to_string(), "rank 0: 0F0 0F1 3F0 0F2 3B0\nrank 1: 1F0 1F1 2F0 2I0 2W0\n");
    assert_eq!(schedule.owner(), [0, 1, 1, 0]);
    assert_eq!(schedule.micro_batches(), 3);
    assert_eq!(
        schedule.lower().unwrap_err().to_string(),
        "rank 0, at its end, position 5: 0B0 is missing"
    );
}

#[test]
fn what_is_wrong_and_where() {
    let error = |text: &str| csv::parse(text).unwrap_err().to_string();
    let no_step = "is no step; write the stage, F, B, I or W, and the micro-batch, as in 1F0, and leave out sends, \
                   receives and the like, which follow from it";
    assert_eq!(error("0F0,0B0\n,1F0,1SEND_F0"), format!("row 2, column 3: \"1SEND_F0\" {no_step}"));
    for cell in [
        "0X0",
        "F0",
        "0F",
        "0F+1",
        "0F-1",
        "0f0",
        "(0F0;)OVERLAP_F_B",
        "(0F0",
        "0F99999999999999999999",
    ] {
        assert_eq!(error(cell), format!("row 1, column 1: {cell:?} {no_step}"));
    }
    assert_eq!(error("0F0\n\n1F0"), "row 2 has no step: each rank, one a row, needs a stage");
    assert_eq!(
        error("0F0\n1F0,0B0"),
        "row 2, column 2: 0B0 is a step of stage 0, which row 1 has: a stage belongs to one rank"
    );
    assert_eq!(
        error("0F0\n2F0"),
        "no row has stage 1, and there are steps of stage 2: stages count from 0 without a gap"
    );
    assert_eq!(
        error("0F70000"),
        "row 1, column 1: 0F70000 is beyond the 65536 stages or micro-batches that there can be; count both from 0"
    );
    assert_eq!(error(" \n"), "a pipeline of 0 stages: give at least 1");
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[0-9FBIW,;()\\n\"A-Z_ ]{0,60}") {
        if let Ok(schedule) = csv::parse(&text) {
            // Nearly none of these is right; none may panic.
            let _ = schedule.lower();
            let _ = csv::write(&schedule);
        }
    }
}

"""What columns are called in the tables of data sets and tools, in lower case; the likelier names come first."""

from __future__ import annotations

import re

NAME_COLUMNS = (
    "file",
    "image",
    "filename",
    "file_name",
    "image_name",
    "path",
    "image_path",
    "img_path",
    "filepath",
    "file_path",
    "image_id",
    "imageid",
    "image index",
    "image_index",
    "img",
    "imagefile",
    "image_file",
    "image_filename",
    "image_url",
    "imageurl",
    "imagegcsuri",
    "source-ref",
    "sourcefile",
    "picture",
    "photo",
    "uri",
    "url",
    "name",
    "key",
    "id",
)
LABEL_COLUMNS = (
    "labels",
    "label",
    "tags",
    "tag",
    "finding labels",
    "attribute_ids",
    "classes",
    "class_name",
    "classname",
    "class",
    "categories",
    "category",
    "choice",
    "choices",
    "labelname",
    "label_name",
    "attributes",
    "keywords",
    "gt_label",
    "targets",
    "target",
    "genres",
    "genre",
    "classificationannotations",
    "displaynames",
    "species",
    "objects",
    "subject",
    "tag_string",
)
VALUE_COLUMNS = ("confidence", "score", "probability", "prob", "value", "present", "is_present")
# Columns of 0 and 1 that say something about a row and not about its image.
FLAGS = frozenset(
    [
        "reviewed",
        "is_reviewed",
        "verified",
        "is_verified",
        "checked",
        "is_checked",
        "done",
        "approved",
        "is_valid",
        "valid",
        "isvalid",
        "is_test",
        "is_train",
        "is_val",
        "train",
        "test",
        "val",
        "annotated",
        "is_annotated",
        "labeled",
        "labelled",
        "skip",
        "skipped",
        "ignore",
        "exclude",
        "excluded",
        "usable",
        "flag",
        "flagged",
        "is_labeled",
        "is_deleted",
        "is_training",
        "is_validation",
        "training",
        "validation",
        "duplicate",
        "is_duplicate",
        "sex",
        "gender",
        "was_cancelled",
    ]
)
_FLAG = re.compile(
    r"double_checked|reviewed_by_expert|needs_review|to_check|qc|in_train|test_set|include|keep|use|consensus"
    r"|has_annotation|is_annotated|(is_)?completed?|finished|deleted|active|done_y_n|(is_)?correct|is_true|human_answer"
    r"|(is_)?selected|exists|(is_)?accepted|(is_)?rejected|is_public|has_metadata|drop|delete_?flag|error|corrupt(ed)?"
    r"|(un)?readable|(good|bad)_quality|used|included|has_image|holdout|gold|double_read|processed|augmented|synthetic"
    r"|consent|agreed?|confident|doubtful|not_assessable|is_blank"
)
_OF_ROW = re.compile(
    r"train_test|kfold|cv_fold|split_id|batch|session|version|(num|n|number_of)_(labels|boxes|faces|objects)|(label_)?count"
    r"|vote|sign|quality|rating|difficulty|importance|patient|camera|site|second_reader|total|sum|visit|score_weight|id"
)


_MEASURE = re.compile(
    r"(^|_)(conf(idences?)?|certainty|likelihood|similarity|prob(ability|abilities|s)?|scores?|weights?|votes|p|relevance"
    r"|percent(age)?|severity|grade)_?\d*(_|$)"
)


def is_measure_name(name: str) -> bool:
    """Whether a plain name is that of numbers which say how sure something is."""
    return _MEASURE.search(name) is not None


def plain_name(name: str) -> str:
    """A column's name in lower case, with `_` between its words: `Reviewed?` and `Is valid` are those of FLAGS."""
    return re.sub(r"[^\w]+|_+", "_", name.strip().lower()).strip("_")


def is_flag(name: str) -> bool:
    """Whether a column is called like one that says yes or no about a row."""
    return plain_name(name) in FLAGS or _FLAG.fullmatch(plain_name(name)) is not None


def is_about_annotation(name: str) -> bool:
    """Whether a column is called like one about the row and not about what the image shows."""
    plain = plain_name(name)
    return is_flag(name) or plain in READER_COLUMNS or _OF_ROW.fullmatch(plain) is not None


READER_COLUMNS = frozenset(
    {
        "annotator",
        "annotator_id",
        "annotator_name",
        "reader",
        "reader_id",
        "rater",
        "rater_id",
        "worker",
        "worker_id",
        "workerid",
        "labeler",
        "labeller",
        "user",
        "user_id",
        "created_by",
        "annotated_by",
        "labeled_by",
        "rad_id",
        "radiologist",
        "coder",
        "coder_id",
        "expert",
        "participant",
        "participant_id",
    }
)
INDEX = frozenset({"", "index", "unnamed: 0", "level_0", "row", "rownum", "__index_level_0__"})
SPLITS = frozenset({"split", "subset", "set", "partition", "fold", "ml_use", "usage", "phase"})
# Columns about a row, which hold no labels; a blank one is no label either.
REMARKS = (
    "comment",
    "comments",
    "note",
    "notes",
    "remark",
    "remarks",
    "url",
    "description",
    "timestamp",
    "date",
    "email",
    "email address",
    "created_at",
    "updated_at",
)


def tool_of(names: set[str]) -> tuple[str, frozenset[str], tuple[str, ...]]:
    """The data set with these columns, in lower case, its columns that are no labels, and its words for no label."""
    if {"path", "frontal/lateral"} <= names:
        return "CheXpert", frozenset({"sex", "age", "frontal/lateral", "ap/pa"}), ()
    if {"subject_id", "study_id"} <= names:
        return "MIMIC-CXR", frozenset({"subject_id", "study_id"}), ()
    if {"image index", "finding labels"} <= names:
        return "ChestX-ray14", frozenset({"patient id", "follow-up #"}), ("No Finding",)
    if {"image_id", "rad_id"} <= names:
        return "VinDr-CXR", frozenset({"rad_id", "class_id", "x_min", "y_min", "x_max", "y_max"}), ()
    if {"imageid", "labelname"} <= names:
        return "Open Images", frozenset({"source"}), ()
    if {"imageid", "labels", "labelslocalizationsbysentence"} <= names:
        return "PadChest", frozenset(), ()
    if names & {"annotation_id", "annotator"} and names & {"choice", "choices"}:
        return (
            "Label Studio",
            frozenset({"id", "annotator", "annotation_id", "lead_time", "created_at", "updated_at"}),
            (),
        )
    return "", frozenset(), ()

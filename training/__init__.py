"""Makes the artifacts that `engines` runs: data, networks, losses, the training loop, evaluation and export.

    dataset.py          COCO-format folders and zips -> people with masks and keypoints
    compose.py          pictures with known occlusion, composed from cut-out people
    augment.py          image, pose and ROI augmentation
    preview.py          a picture of the samples a run will see
    model.py            the live network: one backbone, keypoint heads, mask laterals, SegModule
    movenet_weights.py  where the backbone's first weights come from
    rois.py losses.py   what each part is taught
    train.py            the loop; settings.py and checkpoint.py beside it
    evaluate.py         COCO AP of an artifact or of poses in a file
    export_onnx.py      checkpoint -> artifact folder
    cluster_templates.py  pose templates by K-means

Serving code never imports this package; the two meet in `kernels` and in artifact files.
"""

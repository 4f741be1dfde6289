"""All arithmetic of the project: pure functions on arrays, each fast one beside its slow ``*_reference`` twin.

    frame -> letterbox -> [keypoint network] -> pose_decoding -> pose_fit
          -> skeleton, affine_align -> [mask network] -> mask_paste

Only numpy, numba and OpenCV are needed; modules named ``torch_*`` hold the PyTorch form of an operation and are
imported by name. Pixel convention: `kernels.coordinates`.
"""

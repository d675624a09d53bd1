"""BPR and VBPR of cornac, in an environment of their own.

    python pairwise_peers.py MODEL SETTINGS_JSON IN.npz OUT.npy

IN holds `train` (pairs of user and video rows, from 0), `looks` [videos, C] (zeros: none), `users` and `videos` (how
many), `asked` (users). OUT is a score of every video for each user asked, float32 [asked, videos]; videos that cornac
does not know, because nobody opened them, have the least score, and users it does not know the mean of the others.
"""

import json
import sys

import cornac
import numpy as np
from cornac.data import Dataset, ImageModality

if __name__ == "__main__":
    name, settings, source, out = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
    with np.load(source) as file:
        given = {key: file[key] for key in file.files}
    ratings = [(int(user), int(video), 1.0) for user, video in given["train"]]
    data = Dataset.build(ratings, seed=settings.get("seed"))
    if name == "vbpr":
        rows = [int(video) for video in data.item_ids]
        looks = ImageModality(features=given["looks"][rows].astype(np.float32), ids=rows, normalized=False)
        data.add_modalities(item_image=looks.build(id_map=data.iid_map))
    model = {"bpr": cornac.models.BPR, "vbpr": cornac.models.VBPR}[name](verbose=False, **settings)
    model.fit(data)
    scores = np.full((len(given["asked"]), int(given["videos"])), -1e9, np.float32)
    columns = np.array([int(video) for video in data.item_ids])
    known = np.array([model.score(user) for user in range(data.num_users)], np.float32)
    for row, user in enumerate(given["asked"]):
        scores[row, columns] = known[data.uid_map[int(user)]] if int(user) in data.uid_map else known.mean(axis=0)
    np.save(out, scores)
    print(json.dumps({"cornac": cornac.__version__, "numpy": np.__version__}))

# SPDX-License-Identifier: BSD-2-Clause
"""A lab as a picture. Pure: from a topology to text.

    graph       a lab as nodes and edges; as Mermaid, DOT and JSON
    layout      where boxes and lines go: parts of a graph, each by what suits it
    layers, rows, comb   trees, stars, fabrics of switches; mesh: everything else
    plane       boxes, routes, grids: the geometry that these share
    picture     the same as SVG
"""

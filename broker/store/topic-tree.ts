interface Node<T> {
  /** Null where nothing is: of most topics it would take more memory than the rest. */
  below: Map<string, Node<T>> | null
  value: T | undefined
}

const DOLLAR = '$'

/**
 * Values by topic or by topic filter, level by level (MQTT 3.1.1 section 4.7): `+` is any one level, the empty one
 * too; `#` is its parent and everything below; neither stands for a first level that begins with `$`.
 */
export class TopicTree<T> {
  #root: Node<T> = newNode()
  #size = 0

  get size(): number {
    return this.#size
  }

  get(path: string): T | undefined {
    let node: Node<T> | undefined = this.#root
    for (const level of path.split('/')) {
      node = node.below?.get(level)
      if (node === undefined) return undefined
    }
    return node.value
  }

  set(path: string, value: T): void {
    let node = this.#root
    for (const level of path.split('/')) {
      node.below ??= new Map()
      const next = node.below.get(level) ?? newNode<T>()
      node.below.set(level, next)
      node = next
    }
    if (node.value === undefined) this.#size++
    node.value = value
  }

  /** Takes the value out, and the levels that lead to nothing any more. */
  delete(path: string): void {
    const levels = path.split('/')
    const way: Node<T>[] = [this.#root]
    for (const level of levels) {
      const next = way.at(-1)?.below?.get(level)
      if (next === undefined) return
      way.push(next)
    }
    const last = way.at(-1)
    if (last?.value === undefined) return
    last.value = undefined
    this.#size--
    for (let at = levels.length; at > 0; at--) {
      const node = way[at]
      if (node === undefined || node.value !== undefined || (node.below?.size ?? 0) > 0) return
      way[at - 1]?.below?.delete(levels[at - 1] ?? '')
    }
  }

  /** Values of the filters that match a topic. */
  filtersFor(topic: string): T[] {
    const found: T[] = []
    collect(this.#root, { levels: topic.split('/'), at: 0, found })
    return found
  }

  /** Values of the topics that a filter matches, as slowly as they are taken. */
  topicsUnder(filter: string): Generator<T> {
    return walk(this.#root, filter.split('/'), 0)
  }

  *values(): Generator<T> {
    yield* everything(this.#root, false)
  }
}

function newNode<T>(): Node<T> {
  return { below: null, value: undefined }
}

function collect<T>(node: Node<T>, way: { levels: readonly string[]; at: number; found: T[] }): void {
  const { levels, at, found } = way
  const level = levels[at]
  const isOpen = at > 0 || level?.startsWith(DOLLAR) !== true
  const below = isOpen ? node.below?.get('#')?.value : undefined
  if (below !== undefined) found.push(below)
  if (level === undefined) {
    if (node.value !== undefined) found.push(node.value)
    return
  }
  const any = isOpen ? node.below?.get('+') : undefined
  if (any !== undefined) collect(any, { levels, at: at + 1, found })
  const same = node.below?.get(level)
  if (same !== undefined) collect(same, { levels, at: at + 1, found })
}

function* walk<T>(node: Node<T>, levels: readonly string[], at: number): Generator<T> {
  const level = levels[at]
  if (level === undefined) {
    if (node.value !== undefined) yield node.value
    return
  }
  if (level === '#') return yield* everything(node, at === 0)
  if (level !== '+') {
    const same = node.below?.get(level)
    if (same !== undefined) yield* walk(same, levels, at + 1)
    return
  }
  for (const [name, next] of node.below ?? []) {
    if (at > 0 || !name.startsWith(DOLLAR)) yield* walk(next, levels, at + 1)
  }
}

function* everything<T>(node: Node<T>, isRoot: boolean): Generator<T> {
  if (node.value !== undefined) yield node.value
  for (const [name, next] of node.below ?? []) {
    if (!isRoot || !name.startsWith(DOLLAR)) yield* everything(next, false)
  }
}

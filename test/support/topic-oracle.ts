/** MQTT 3.1.1 section 4.7, word for word: what filters match, slowly, on arrays. */
function matches(filter: readonly string[], topic: readonly string[]): boolean {
  const [head, ...rest] = filter
  if (head === undefined) return topic.length === 0
  if (head === '#') return true // any number of levels, none included
  const [level, ...below] = topic
  return level !== undefined && (head === '+' || head === level) && matches(rest, below)
}

export function oracle(filter: string, topic: string): boolean {
  if (topic.startsWith('$') !== filter.startsWith('$')) return false // [MQTT-4.7.2-1]
  return matches(filter.split('/'), topic.split('/'))
}

/** Every topic of at most `depth` levels over an alphabet. */
export function everyTopic(depth: number, alphabet: readonly string[] = ['', 'a', 'b', 'other']): string[] {
  const topics: string[][] = []
  let longest: string[][] = [[]]
  for (let level = 0; level < depth; level++) {
    longest = longest.flatMap((topic) => alphabet.map((name) => [...topic, name]))
    topics.push(...longest)
  }
  return topics.map((levels) => levels.join('/')).filter((topic) => topic !== '')
}

import { execFileSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import t from 'tap'

const NEW_SPACE = fileURLToPath(new URL('../../broker/new-space.ts', import.meta.url))
const MIB = 1_024 * 1_024

/** Keeps whatever it makes, as a storm of connections does; prints the largest that V8's new space has been, octets. */
const STORM = `
  import { getHeapSpaceStatistics } from 'node:v8'
  if (process.argv[1]) (await import(process.argv[1])).boundNewSpace()
  const kept = []
  let largest = 0
  for (let turn = 0; turn < 400; turn++) {
    for (let made = 0; made < 5_000; made++) kept.push({ turn, made, list: [turn, made] })
    await new Promise(setImmediate)
    const { space_size } = getHeapSpaceStatistics().find(({ space_name }) => space_name === 'new_space')
    largest = Math.max(largest, space_size)
  }
  process.stdout.write(String(largest))
`

function largest(...args: string[]): number {
  return Number(
    execFileSync(process.execPath, ['--input-type=module', '--eval', STORM, ...args], { encoding: 'utf8' }),
  )
}

t.test('V8 has 16 MiB a half for what is new, however much stays', async (t) => {
  t.ok(largest(NEW_SPACE) <= 32 * MIB, 'it grew no further')
  t.ok(largest() > 32 * MIB, 'as it does without the bound: otherwise this test shows nothing')
})

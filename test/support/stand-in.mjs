// Stands in for bin/muster.mjs: a child that does what its arguments say, so that every way to start, to fail and to
// end can be seen. `node stand-in.mjs <behaviour> <file>`: the file gets a line for each start and each stop.
import { appendFileSync, existsSync, rmSync } from 'node:fs'

const [behaviour, file, ...more] = process.argv.slice(2)
const note = (text) => appendFileSync(file, `${text}\n`)
const ready = () => process.send({ type: 'ready', details: {} })
note(`start ${behaviour} ${more.join(' ')}`.trim())
process.once('disconnect', () => process.exit(0))

const stops = (pauseMs) => {
  process.once('SIGTERM', () => {
    setTimeout(() => {
      note(`stop ${behaviour}`)
      process.exit(0)
    }, pauseMs)
  })
  ready()
}

const behaviours = {
  serves: () => stops(0),
  'stops-slowly': () => stops(300),
  'ignores-sigterm': () => {
    process.on('SIGTERM', () => note('ignored'))
    ready()
  },
  fails: () =>
    process.send(
      { type: 'failed', code: 'key_file_insecure', message: 'Cannot use "x": its mode is 0644' },
      () => process.exit(8),
    ),
  'fails-on-stderr': () => {
    process.stderr.write('{"event":"starting"}\nCannot open the database "x": it is damaged\n')
    process.exit(4)
  },
  'fails-silently': () => process.exit(3),
  'deletes-its-log': () => {
    rmSync(more[0], { recursive: true })
    process.exit(3)
  },
  'dies-once': () => {
    if (existsSync(`${file}.died`)) return stops(0)
    appendFileSync(`${file}.died`, '')
    process.send({ type: 'ready', details: {} }, () => process.exit(9))
  },
  ends: () => process.exit(0),
}
behaviours[behaviour]()

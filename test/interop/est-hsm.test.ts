import { existsSync, mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { ports } from '#shared/layout'
import { scratch } from '../support/muster.ts'
import { startPlane } from '../support/plane.ts'
import { MUSTER_COMMAND as muster, sh } from '../support/sh.ts'

const MODULE = ['/usr/lib/softhsm/libsofthsm2.so', '/usr/lib64/pkcs11/libsofthsm2.so'].find(existsSync) ?? ''
/** RFC 7512. */
const KEY = 'pkcs11:token=device;object=meter;type=private;pin-value=1234'

t.test('a device whose key never leaves its security module', async (t) => {
  const cwd = scratch(t)
  const plane = await startPlane(t, { data: join(cwd, 'data') })
  mkdirSync(join(cwd, 'tokens'))
  writeFileSync(join(cwd, 'hsm.conf'), `directories.tokendir = ${cwd}/tokens\nobjectstore.backend = file\n`)
  const env = {
    SOFTHSM2_CONF: join(cwd, 'hsm.conf'),
    PKCS11_MODULE_PATH: MODULE,
    EST: `https://localhost:${ports(plane.portBase).enrollment}/.well-known/est`,
    KEY,
  }
  const post = `curl --fail --silent --show-error --cacert data/ca/root.crt --header 'Content-Type: application/pkcs10'`
  const readCertificate = 'base64 -d | openssl pkcs7 -inform DER -print_certs'

  await t.test('makes its key inside, and cannot be made to give it out', async (t) => {
    sh(cwd, 'softhsm2-util --init-token --free --label device --so-pin 0000 --pin 1234', env)
    const tool = `pkcs11-tool --module "$PKCS11_MODULE_PATH" --token-label device --login --pin 1234`
    const made = sh(cwd, `${tool} --keypairgen --key-type EC:prime256v1 --label meter --id 01`, env)
    t.match(made, /never extractable/)
    sh(cwd, `${tool} --read-object --type privkey --label meter --output-file stolen 2>&1 || true`, env)
    t.notOk(existsSync(join(cwd, 'stolen')))
  })

  await t.test('enrolls with a token', async (t) => {
    const uri = 'URI:spiffe://muster.local/device/meter-1'
    sh(
      cwd,
      `openssl req -engine pkcs11 -keyform engine -new -key "$KEY" -subj /CN=meter-1 -addext subjectAltName=${uri} -outform DER | base64 > meter.csr`,
      env,
    )
    const TOKEN = sh(cwd, `${muster} token create --data data --batch meters --uses 1`).trim()
    const sent = `${post} --user ":$TOKEN" --data-binary @meter.csr $EST/simpleenroll`
    sh(cwd, `${sent} | ${readCertificate} -out meter.crt`, { ...env, TOKEN })
    t.match(sh(cwd, 'openssl x509 -in meter.crt -noout -subject'), /CN = meter-1/)
  })

  await t.test('renews over mutual TLS, signed inside', async (t) => {
    const pair = '--engine pkcs11 --cert meter.crt --key-type ENG --key "$KEY"'
    sh(
      cwd,
      `${post} ${pair} --data-binary @meter.csr $EST/simplereenroll | ${readCertificate} -out next.crt`,
      env,
    )
    t.equal(
      sh(cwd, 'openssl x509 -in next.crt -noout -pubkey'),
      sh(cwd, 'openssl x509 -in meter.crt -noout -pubkey'),
    )
    t.not(
      sh(cwd, 'openssl x509 -in next.crt -noout -serial'),
      sh(cwd, 'openssl x509 -in meter.crt -noout -serial'),
    )
  })
})
